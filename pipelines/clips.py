"""Frames to clips: a fixed number of frames each, with what is known of where they come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipelines.config import SamplingConfig
from pipelines.decode import Decoded
from pipelines.spans import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    clip_id: str
    span: Span
    start_seconds: float
    fps: float
    frames: np.ndarray
    """(T, H, W, 3) uint8"""
    repeated_frames: int
    """Frames equal to the one before because the video showed nothing newer."""


def cut_clips(decoded: Decoded, span: Span, config: SamplingConfig) -> Iterator[Clip]:
    """Clips of `clip_frames` every `stride_frames`; a shorter tail is dropped. A still image is one clip of
    one frame."""
    clip_frames = 1 if is_still(decoded, span) else config.clip_frames
    starts = range(0, len(decoded.frames) - clip_frames + 1, config.stride_frames)
    for number, start in enumerate(starts):
        chosen = slice(start, start + clip_frames)
        indices = decoded.indices[chosen]
        yield Clip(
            clip_id=f"{span.span_id}/{number:04d}",
            span=span,
            start_seconds=span.start_seconds + start / config.fps,
            fps=config.fps,
            frames=decoded.frames[chosen],
            repeated_frames=sum(a == b for a, b in pairwise(indices)),
        )


def is_still(decoded: Decoded, span: Span) -> bool:
    return span.start_seconds == 0 and decoded.num_source_frames == 1
