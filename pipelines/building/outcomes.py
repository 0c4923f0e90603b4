"""The row of a span: what became of it, its clips with their scores, and what went wrong.

One row a span, whatever its fate: `ok`, `filtered` or `failed`. A row says nothing of who made it or when.
Where a source changed under way there is no row, and the workers tell the command so by one that is `left`.
"""

from collections import Counter
from typing import Any

import numpy as np

from pipelines.clips import Clip, cut_clips, cut_shots
from pipelines.config import ExtractConfig
from pipelines.decoding.decode import Decoded
from pipelines.selection.filters import TOO_SHORT, reject_reason
from pipelines.selection.scores import content_hash, perceptual_hash, score
from pipelines.selection.verdicts import thresholds_key
from pipelines.spans import Span

LEFT = "left"
"""The outcome of a span that a worker could not do: reported, and never written."""


def of_span(span: Span, decoded: Decoded, config: ExtractConfig) -> dict[str, Any]:
    """The row of one span, with its clips, whatever became of it."""
    shots = cut_shots(decoded, config.sampling)
    cut = list(cut_clips(decoded, span, shots, config.sampling))
    clips = [_clip_row(clip, _facts(clip, decoded), config) for clip in cut]
    rejected = Counter(clip["rejected"] for clip in clips if clip["rejected"])
    too_short = len(shots) - len({clip.shot for clip in cut})
    if too_short or not (shots or decoded.error_class):
        rejected[TOO_SHORT] = max(1, too_short)
    kept = len(clips) - sum(1 for clip in clips if clip["rejected"])
    return {
        **_identity(span),
        "end_seconds": span.end_seconds,
        "outcome": "ok" if kept else "failed" if decoded.error_class else "filtered",
        "error_class": decoded.error_class,
        "error": decoded.error,
        "decoder": decoded.decoder,
        "cut_seconds": [span.start_seconds + shot.start / config.sampling.fps for shot in shots[1:]],
        "num_frames": len(decoded.frames),
        "num_clips": kept,
        "rejected": sorted(rejected.items()),
        "judged_by": None if config.keep == "none" else thresholds_key(config.filters),
        "attempts": decoded.attempts,
        "decode_cpu_seconds": decoded.cpu_seconds,
        "tokenize_seconds": 0.0,
        "clips": clips,
    }


def of_left_span(span: Span, error: str) -> dict[str, Any]:
    """What is reported of a span whose source is not what it was."""
    return {
        **_identity(span),
        "outcome": LEFT,
        "error": error,
        "num_frames": 0,
        "num_clips": 0,
        "attempts": 1,
        "decode_cpu_seconds": 0.0,
        "tokenize_seconds": 0.0,
        "clips": [],
    }


def _identity(span: Span) -> dict[str, Any]:
    return {
        "unit_id": span.span_id,
        "span_id": span.span_id,
        "source_id": span.source_id,
        "source": span.source,
        "start_seconds": span.start_seconds,
    }


def _facts(clip: Clip, decoded: Decoded) -> dict[str, float]:
    """Scores of a clip that its pixels do not tell. A source of unknown duration has but one span."""
    return {
        "repeated": clip.repeated_frames / max(1, len(clip.frames) - 1),
        "width": decoded.width,
        "height": decoded.height,
        "seconds": decoded.source_seconds or len(decoded.frames) / clip.fps,
    }


def _clip_row(clip: Clip, facts: dict[str, float], config: ExtractConfig) -> dict[str, Any]:
    scores = score(clip.frames) | facts
    rejected = reject_reason(scores, len(clip.frames), config.filters)
    has_frames = config.keep == "all" or (config.keep == "kept" and not rejected)
    return {
        "clip_id": clip.clip_id,
        "source_id": clip.span.source_id,
        "source": clip.span.source,
        "span_id": clip.span.span_id,
        "start_seconds": clip.start_seconds,
        "fps": clip.fps,
        "num_frames": len(clip.frames),
        "repeated_frames": clip.repeated_frames,
        "scores": sorted(scores.items()),
        "content_hash": content_hash(clip.frames),
        "perceptual_hash": perceptual_hash(clip.frames),
        "shape": list(clip.frames.shape) if has_frames else None,
        "frames": np.ascontiguousarray(clip.frames).data if has_frames else None,
        "rejected": rejected,
    }
