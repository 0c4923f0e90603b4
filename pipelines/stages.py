"""What one worker does with a batch of units: decode, read, tokenize, record. No Ray here.

A stage takes and gives Arrow tables of `records.record_schema`; the ids travel with every batch. Each is safe
to repeat: nothing is written but span files, under names of their own.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from infra.errors import StorageError
from infra.storage import FileInfo
from pipelines import outcomes, records
from pipelines.config import DecodeLimits, ExtractConfig
from pipelines.decode import Decoded, Decoder
from pipelines.shards import ShardSet
from pipelines.source_cache import UnreadableError, opened_locally
from pipelines.spans import SOURCE_SCHEMA, Span, content_id, identify, row
from pipelines.verdicts import filters_of, thresholds_key


@cache
def decoder_of_this_process(limits: DecodeLimits) -> Decoder:
    return Decoder(limits)


def inspect_files(files: pa.Table, limits: DecodeLimits) -> pa.Table:
    """Files to sources: identity by content, and the duration that the container promises."""
    sources = []
    for file in (FileInfo(**fields) for fields in files.to_pylist()):
        try:
            with opened_locally(file.uri) as opened:
                promised = decoder_of_this_process(limits).probe(opened)
                sources.append(row(identify(file, opened, promised.get("duration_seconds"))))
        except UnreadableError:
            sources.append(row(identify(file, None, None)))
    return pa.Table.from_pylist(sources, schema=SOURCE_SCHEMA)


def decode_spans(spans: pa.Table, config: ExtractConfig) -> Iterator[pa.Table]:
    """Spans to records of frames, one row a span, one table a row."""
    for span in (Span(**fields) for fields in spans.to_pylist()):
        record = outcomes.of_span(span, _decoded(span, config), config)
        yield pa.Table.from_pylist([record], schema=records.record_schema("frames"))


def _decoded(span: Span, config: ExtractConfig) -> Decoded:
    """Raises StorageError where the source is not what it was when it was listed."""
    try:
        with opened_locally(span.uri) as opened:
            if content_id(span.source, opened) != span.source_id:
                raise StorageError(f"{span.uri} changed since it was listed; repeat the command")
            return decoder_of_this_process(config.limits).decode(
                opened,
                start_seconds=span.start_seconds,
                end_seconds=span.end_seconds,
                fps=config.sampling.fps,
                sizes=config.sampling.frame_sizes,
            )
    except UnreadableError as error:
        return Decoded(error_class="unreadable", error=str(error))


def read_row_groups(units: pa.Table, frames_uri: str) -> Iterator[pa.Table]:
    """Row groups of a frame set to records of frames, one table a row group."""
    shard_set = ShardSet.open(frames_uri)
    entries = {entry.path: entry for entry in shard_set.manifest.shards}
    judged_by = thresholds_key(filters_of(shard_set.manifest))
    for unit in units.to_pylist():
        table = shard_set.read_row_group(entries[unit["path"]], unit["group"])
        clips = table.drop_columns(["digest"]).to_pylist()
        record = {
            "unit_id": unit["unit_id"],
            "span_id": unit["unit_id"],
            "source_id": "",
            "source": unit["path"],
            "start_seconds": 0.0,
            "outcome": "ok",
            "num_frames": sum(clip["shape"][0] for clip in clips),
            "num_clips": len(clips),
            "judged_by": judged_by,
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
        clips = [clip for record in rows for clip in record["clips"] if clip["frames"] is not None]
        started = time.perf_counter()
        for batch in self._batches(clips):
            self._encode(batch)
        seconds = time.perf_counter() - started
        for record in rows:
            record["tokenize_seconds"] = seconds * record["num_clips"] / max(1, len(clips))
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
        encoded_size = self._tokenizer.config.encoded_size(*frames.shape[2:4])
        batch = self._resize(torch.from_numpy(frames).to(self._device), encoded_size)
        codes = self._tokenizer.encode(batch).cpu().numpy().astype("<u2")  # (B, t, h, w)
        for clip, grid in zip(clips, codes[: len(clips)], strict=True):
            clip["codes"], clip["grid"] = grid.tobytes(), list(grid.shape)
