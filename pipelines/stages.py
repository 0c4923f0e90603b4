"""What one worker does with a batch of units: decode, read, tokenize, record. No Ray here.

A stage takes and gives Arrow tables of `records.record_schema`; the ids travel with every batch. Each is safe
to repeat: nothing is written but span files, under names of their own.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from infra.storage import FileInfo
from pipelines import records
from pipelines.clips import Clip, cut_clips, is_still
from pipelines.config import DecodeLimits, ExtractConfig
from pipelines.decode import Decoded, Decoder, opened_locally
from pipelines.filters import reject_reason, score
from pipelines.shards import ShardSet
from pipelines.spans import Span, identify, row

SOURCE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("name", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.string()),
        ("duration_seconds", pa.float64()),
    ]
)
ENDS_EARLY_SECONDS = 1.0
"""A video that ends this much before the time its container promises is called cut off."""


@cache
def decoder_of_this_process(limits: DecodeLimits) -> Decoder:
    return Decoder(limits)


def inspect_files(files: pa.Table, limits: DecodeLimits) -> pa.Table:
    """Files to sources: identity by content, and the duration that the container promises."""
    sources = []
    for file in (FileInfo(**fields) for fields in files.to_pylist()):
        with opened_locally(file.uri) as opened:
            promised = decoder_of_this_process(limits).probe(opened)
            sources.append(row(identify(file, opened, promised.get("duration_seconds"))))
    return pa.Table.from_pylist(sources, schema=SOURCE_SCHEMA)


def decode_spans(spans: pa.Table, config: ExtractConfig) -> Iterator[pa.Table]:
    """Spans to records of frames, one row a span, one table a row."""
    for span in (Span(**fields) for fields in spans.to_pylist()):
        with opened_locally(span.uri) as opened:
            decoded = decoder_of_this_process(config.limits).decode(
                opened,
                start_seconds=span.start_seconds,
                end_seconds=span.end_seconds,
                fps=config.sampling.fps,
                size=config.sampling.size,
            )
        yield pa.Table.from_pylist([_record(span, decoded, config)], schema=records.record_schema("frames"))


def read_row_groups(units: pa.Table, frames_uri: str) -> Iterator[pa.Table]:
    """Row groups of a frame set to records of frames, one table a row group."""
    shard_set = ShardSet.open(frames_uri)
    entries = {entry.path: entry for entry in shard_set.manifest.shards}
    for unit in units.to_pylist():
        clips = shard_set.read_row_group(entries[unit["path"]], unit["group"]).to_pylist()
        record = {
            "unit_id": unit["unit_id"],
            "span_id": unit["unit_id"],
            "source_id": "",
            "source": unit["path"],
            "start_seconds": 0.0,
            "outcome": "ok",
            "num_frames": sum(clip["shape"][0] for clip in clips),
            "num_clips": len(clips),
            "attempts": 1,
            "decode_cpu_seconds": 0.0,
            "tokenize_seconds": 0.0,
            "clips": clips,
        }
        yield pa.Table.from_pylist([record], schema=records.record_schema("frames"))


@dataclass(frozen=True, slots=True)
class WriteRecords:
    """Puts a batch of records into a span file and passes on what progress needs to know of them."""

    out: str

    def __call__(self, table: pa.Table) -> pa.Table:
        records.write(self.out, table)
        return table.select(["unit_id", "outcome", "error_class", "num_frames", "num_clips"])


class TokenizeRecords:
    """Records of frames to records of codes, in batches of one padded shape, then into a span file.

    A fixed shape makes a clip's codes independent of its neighbours: between shapes, sums run in another
    order.
    """

    def __init__(self, *, tokenizer: str, clips_per_batch: int, out: str) -> None:
        import torch

        from model.bundle import load_tokenizer
        from model.tokenizer import resize

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = load_tokenizer(tokenizer).to(self._device).eval()
        self._resize = resize
        self._clips_per_batch = clips_per_batch
        self._write = WriteRecords(out)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        clips = [clip for record in rows for clip in record["clips"] if clip["rejected"] is None]
        started = time.perf_counter()
        for batch in self._batches(clips):
            self._encode(batch)
        seconds = time.perf_counter() - started
        for record in rows:
            record["tokenize_seconds"] = seconds * record["num_clips"] / max(1, len(clips))
            record["clips"] = [clip for clip in record["clips"] if clip["rejected"] is None]
        return self._write(pa.Table.from_pylist(rows, schema=records.record_schema("tokens")))

    def _batches(self, clips: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Up to `clips_per_batch` clips of one shape."""
        by_shape: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for clip in clips:
            by_shape.setdefault(tuple(clip["shape"]), []).append(clip)
        for same in by_shape.values():
            for start in range(0, len(same), self._clips_per_batch):
                yield same[start : start + self._clips_per_batch]

    def _encode(self, clips: list[dict[str, Any]]) -> None:
        """Adds `codes` and `grid` to each clip and drops its frames."""
        import torch

        shape = clips[0]["shape"]
        frames = np.zeros((self._clips_per_batch, *shape), np.uint8)
        for index, clip in enumerate(clips):
            frames[index] = np.frombuffer(clip.pop("frames"), np.uint8).reshape(clip.pop("shape"))
        batch = self._resize(torch.from_numpy(frames).to(self._device), self._tokenizer.config.frame_size)
        codes = self._tokenizer.encode(batch).cpu().numpy().astype("<u2")  # (B, t, h, w)
        for clip, grid in zip(clips, codes[: len(clips)], strict=True):
            clip["codes"], clip["grid"] = grid.tobytes(), list(grid.shape)


def _record(span: Span, decoded: Decoded, config: ExtractConfig) -> dict[str, Any]:
    """The row of one span, with its clips, whatever became of it."""
    clips = [_clip_row(clip, config) for clip in cut_clips(decoded, span, config.sampling)]
    rejected = Counter(clip["rejected"] for clip in clips if clip["rejected"])
    if not clips and len(decoded.frames):
        rejected["too_short"] = 1
    kept = len(clips) - sum(1 for clip in clips if clip["rejected"])
    error_class, error = _error(span, decoded)
    return {
        "unit_id": span.span_id,
        "span_id": span.span_id,
        "source_id": span.source_id,
        "source": span.source,
        "start_seconds": span.start_seconds,
        "end_seconds": span.end_seconds,
        "outcome": "ok" if kept else "failed" if error_class else "filtered",
        "error_class": error_class,
        "error": error,
        "decoder": decoded.decoder,
        "num_frames": len(decoded.frames),
        "num_clips": kept,
        "rejected": sorted(rejected.items()),
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
        "shape": list(clip.frames.shape),
        "frames": None if rejected else clip.frames.tobytes(),
        "rejected": rejected,
    }


def _error(span: Span, decoded: Decoded) -> tuple[str | None, str | None]:
    """The class and the sentence of what went wrong; with frames, only a part of the span was lost."""
    promised, ends = decoded.duration_seconds, decoded.last_frame_seconds
    if decoded.error_class is not None:
        return decoded.error_class, decoded.error
    if not len(decoded.frames):
        if promised is not None and promised - span.start_seconds < ENDS_EARLY_SECONDS:
            return None, None  # the last frame began before this span, and shows until the end
        return "truncated", f"no frame from {span.start_seconds:g} s on, though the container promises some"
    is_last = span.end_seconds is None and not is_still(decoded, span)
    if is_last and promised is not None and promised - ends >= ENDS_EARLY_SECONDS:
        return "truncated", f"the video ends at {ends:.1f} s, its container promises {promised:.1f} s"
    if decoded.num_damaged:
        return (
            "corrupt",
            f"{decoded.num_damaged} packets or pictures are damaged; others may stand in for them",
        )
    return None, None
