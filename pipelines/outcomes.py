"""The row of a span: what became of it, its clips with their scores, and what went wrong.

One row a span, whatever its fate: `ok`, `filtered` or `failed`. A row says nothing of who made it or when.
"""

from collections import Counter
from typing import Any

from pipelines.clips import Clip, cut_clips
from pipelines.config import ExtractConfig
from pipelines.decode import Decoded
from pipelines.filters import reject_reason, score
from pipelines.spans import Span
from pipelines.verdicts import thresholds_key


def of_span(span: Span, decoded: Decoded, config: ExtractConfig) -> dict[str, Any]:
    """The row of one span, with its clips, whatever became of it."""
    clips = [_clip_row(clip, config) for clip in cut_clips(decoded, span, config.sampling)]
    rejected = Counter(clip["rejected"] for clip in clips if clip["rejected"])
    if not clips and len(decoded.frames):
        rejected["too_short"] = 1
    kept = len(clips) - sum(1 for clip in clips if clip["rejected"])
    return {
        "unit_id": span.span_id,
        "span_id": span.span_id,
        "source_id": span.source_id,
        "source": span.source,
        "start_seconds": span.start_seconds,
        "end_seconds": span.end_seconds,
        "outcome": "ok" if kept else "failed" if decoded.error_class else "filtered",
        "error_class": decoded.error_class,
        "error": decoded.error,
        "decoder": decoded.decoder,
        "num_frames": len(decoded.frames),
        "num_clips": kept,
        "rejected": sorted(rejected.items()),
        "judged_by": thresholds_key(config.filters),
        "attempts": decoded.attempts,
        "decode_cpu_seconds": decoded.cpu_seconds,
        "tokenize_seconds": 0.0,
        "clips": clips,
    }


def _clip_row(clip: Clip, config: ExtractConfig) -> dict[str, Any]:
    scores = score(clip.frames)
    rejected = reject_reason(scores, len(clip.frames), config.filters)
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
        "shape": None if rejected else list(clip.frames.shape),
        "frames": None if rejected else clip.frames.tobytes(),
        "rejected": rejected,
    }
