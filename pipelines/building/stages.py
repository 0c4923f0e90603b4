"""What one worker does with a batch of units: decode, read, record. No Ray here.

A stage takes and gives Arrow tables, of `records.record_schema` where they hold records; the ids travel with
every batch. Inside a worker records are rows, since a table would copy their frames. Each stage is safe to
repeat: nothing is written but span files, under names of their own.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import FileInfo
from pipelines import records
from pipelines.building import outcomes
from pipelines.config import DecodeLimits, ExtractConfig
from pipelines.decoding.decode import Decoded, Decoder
from pipelines.decoding.source_cache import UnreadableError, opened_locally
from pipelines.selection.verdicts import filters_of, thresholds_key
from pipelines.shards import ShardSet
from pipelines.source_errors import SourceError
from pipelines.spans import INSPECTED_SCHEMA, Span, content_id, identify, row

BYTES_PER_FILE = 64 << 20
"""Of records of frames that wait in a worker for their span file."""
Row = dict[str, Any]
REPORTED = [
    "unit_id",
    "source",
    "outcome",
    "error_class",
    "error",
    "num_frames",
    "num_clips",
    "decode_cpu_seconds",
    "tokenize_seconds",
]
"""Columns of a record that travel back to the command, with the seconds of the worker."""


@cache
def decoder_of_this_process(limits: DecodeLimits) -> Decoder:
    return Decoder(limits)


def inspect_files(files: pa.Table, limits: DecodeLimits) -> pa.Table:
    """Files to sources, of INSPECTED_SCHEMA: identity by content, and the duration that the container
    promises. One that is not to be had as it was listed is left: the others go on."""
    listed = (FileInfo(**fields) for fields in files.to_pylist())
    return pa.Table.from_pylist([_inspected(file, limits) for file in listed], schema=INSPECTED_SCHEMA)


def _inspected(file: FileInfo, limits: DecodeLimits) -> Row:
    try:
        with opened_locally(file.uri) as opened:
            promised = decoder_of_this_process(limits).probe(opened)
            return row(identify(file, opened, promised.get("duration_seconds")))
    except UnreadableError:
        return row(identify(file, None, None))
    except SourceError as error:
        return {**asdict(file), "left": str(error)}


@dataclass(frozen=True, slots=True)
class DecodeSpans:
    """Spans to records of frames, one a span."""

    config: ExtractConfig

    def prepare(self) -> None:
        """What takes a while before the first span."""
        decoder_of_this_process(self.config.limits).start()

    def __call__(self, spans: pa.Table) -> Iterator[Row]:
        for span in (Span(**fields) for fields in spans.to_pylist()):
            yield self._record(span)

    def _record(self, span: Span) -> Row:
        """One of a source that changed says only that the span is left: the others go on."""
        try:
            return outcomes.of_span(span, decoded(span, self.config), self.config)
        except SourceError as error:
            return outcomes.of_left_span(span, str(error))


@dataclass(frozen=True, slots=True)
class ReadRowGroups:
    """Row groups of a frame set to records of frames, one a row group."""

    frames_uri: str

    def prepare(self) -> None:
        pass

    def __call__(self, units: pa.Table) -> Iterator[Row]:
        shard_set = ShardSet.open(self.frames_uri)
        entries = {entry.path: entry for entry in shard_set.manifest.shards}
        judged_by = thresholds_key(filters_of(shard_set.manifest))
        for unit in units.to_pylist():
            table = shard_set.read_row_group(entries[unit["path"]], unit["group"])
            clips = table.drop_columns(["digest"]).to_pylist()
            yield {
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


Read = DecodeSpans | ReadRowGroups
"""How a worker comes to the frames of its units."""


def read_frames(units: pa.Table, read: Read) -> Iterator[pa.Table]:
    """Records of frames for another worker, one table a unit."""
    for record in read(units):
        yield pa.Table.from_pylist([record], schema=records.record_schema("frames"))


def decoded(span: Span, config: ExtractConfig) -> Decoded:
    """What comes of a span. Raises SourceError where the source is not what it was when it was listed.

    That is asked once it is decoded: it may change meanwhile, and where it does not answer at all, the child
    can be ended, and this process not.
    """
    try:
        with opened_locally(span.uri) as opened:
            found = decoder_of_this_process(config.limits).decode(
                opened,
                start_seconds=span.start_seconds,
                end_seconds=span.end_seconds,
                fps=config.sampling.fps,
                sizes=config.sampling.frame_sizes,
            )
            if content_id(span.source, opened) != span.source_id:
                raise SourceError(f"{span.uri} changed since it was listed; repeat the command")
            return found
    except UnreadableError as error:
        return Decoded(error_class="unreadable", error=str(error))


def extract_spans(spans: pa.Table, config: ExtractConfig, out: str) -> Iterator[pa.Table]:
    """Spans to span files of frames, a new one whenever BYTES_PER_FILE are there."""
    write, waiting, began = WriteRecords(out), [], time.perf_counter()
    for table in read_frames(spans, DecodeSpans(config)):
        waiting.append(table)
        if sum(one.nbytes for one in waiting) >= BYTES_PER_FILE:
            yield write(pa.concat_tables(waiting), began)
            waiting, began = [], time.perf_counter()
    if waiting:
        yield write(pa.concat_tables(waiting), began)


@dataclass(frozen=True, slots=True)
class WriteRecords:
    """Puts a batch of records into a span file and passes on what progress and pace need to know of them."""

    out: str

    def __call__(self, table: pa.Table, began: float) -> pa.Table:
        """`began`: of the work on this batch, by `time.perf_counter`. What is left gets no row."""
        done = table.filter(pc.not_equal(table.column("outcome"), outcomes.LEFT))
        if done.num_rows:
            records.write(self.out, done)
        each = (time.perf_counter() - began) / max(1, table.num_rows)
        return table.select(REPORTED).append_column(
            "worker_seconds", pa.array([each] * table.num_rows, pa.float64())
        )
