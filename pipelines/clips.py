"""Frames to clips: a fixed number of frames each, with what is known of where they come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipelines.config import SamplingConfig
from pipelines.decoding.decode import Decoded
from pipelines.selection.shots import find_cuts
from pipelines.spans import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    clip_id: str
    span: Span
    start_seconds: float
    fps: float
    shot: int
    """Number of its shot in the span."""
    frames: np.ndarray
    """(T, H, W, 3) uint8"""
    repeated_frames: int
    """Frames equal to the one before because the video showed nothing newer."""


def cut_clips(decoded: Decoded, span: Span, shots: list[range], config: SamplingConfig) -> Iterator[Clip]:
    """Clips of `clip_frames` every `stride_frames` of each shot; a shorter tail is dropped. A still image is
    one clip of one frame.

    A shot that goes on beyond its span is cut there: spans know nothing of each other.
    """
    clip_frames = 1 if is_still(decoded, span) else config.clip_frames
    starts = [
        (shot_number, start)
        for shot_number, shot in enumerate(shots)
        for start in range(shot.start, shot.stop - clip_frames + 1, config.stride_frames)
    ]
    for number, (shot_number, start) in enumerate(starts):
        chosen = slice(start, start + clip_frames)
        indices = decoded.indices[chosen]
        yield Clip(
            clip_id=f"{span.span_id}/{number:04d}",
            span=span,
            start_seconds=span.start_seconds + start / config.fps,
            fps=config.fps,
            shot=shot_number,
            frames=decoded.frames[chosen],
            repeated_frames=sum(a == b for a, b in pairwise(indices)),
        )


def cut_shots(decoded: Decoded, config: SamplingConfig) -> list[range]:
    """The frames of each shot, in order; all frames are one shot where cuts are not looked for, none is where
    there are no frames."""
    num_frames = len(decoded.frames)
    if not num_frames:
        return []
    cuts = find_cuts(decoded.frames, decoded.indices, config.fps) if config.shots else []
    return [range(start, stop) for start, stop in pairwise([0, *cuts, num_frames])]


def is_still(decoded: Decoded, span: Span) -> bool:
    return span.start_seconds == 0 and decoded.num_source_frames == 1
