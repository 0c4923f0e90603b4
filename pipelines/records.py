"""Span files: the record of work done, one row a unit, whatever its fate.

A unit is what one try does: a span of a source, or a row group of a frame set. Its row is complete or absent,
under a name no other attempt uses, so that any process may be killed at any time and a rerun does what is
missing.
"""

import uuid
from collections.abc import Iterator, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import hashing, storage
from infra.errors import ShardError
from pipelines.shards import Kind, clip_schema, read_table, write_table

FOLDER = "spans"
CIRCUMSTANCES = ("attempts", "decode_cpu_seconds", "tokenize_seconds", "error")
"""What two tries of one unit may disagree on; `error` tells how a child ended, which `error_class` sums
up."""

OUTCOME_FIELDS = [
    pa.field("span_id", pa.string(), nullable=False),
    pa.field("source_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("start_seconds", pa.float64(), nullable=False),
    pa.field("end_seconds", pa.float64()),
    pa.field("outcome", pa.string(), nullable=False),
    pa.field("error_class", pa.string()),
    pa.field("error", pa.string()),
    pa.field("decoder", pa.string()),
    pa.field("num_frames", pa.int64(), nullable=False),
    pa.field("num_clips", pa.int64(), nullable=False),
    pa.field("rejected", pa.map_(pa.string(), pa.int64())),
]
"""What became of a span: `ok`, `filtered` (nothing kept, `rejected` counts the reasons) or `failed`.

A span that is `ok` or `filtered` and has an `error_class` was damaged in part: what could be decoded is
there.
"""


def record_schema(kind: Kind) -> pa.Schema:
    payload = clip_schema(kind)
    clip = pa.struct([field.with_nullable(True) for field in payload] + [pa.field("rejected", pa.string())])
    return pa.schema(
        [
            pa.field("unit_id", pa.string(), nullable=False),
            *OUTCOME_FIELDS,
            pa.field("attempts", pa.int32(), nullable=False),
            pa.field("decode_cpu_seconds", pa.float64(), nullable=False),
            pa.field("tokenize_seconds", pa.float64(), nullable=False),
            pa.field("clips", pa.large_list(clip), nullable=False),
        ]
    )


def write(out: str, rows: pa.Table) -> None:
    """Puts rows under a name of their own in `out`/spans."""
    write_table(storage.join(out, FOLDER, f"{uuid.uuid4().hex}.parquet"), rows, rows_per_group=64)


def files(out: str) -> list[str]:
    return [file.uri for file in storage.list_files(storage.join(out, FOLDER))]


def done_units(out: str) -> set[str]:
    """Ids of the units that have a row."""
    return {unit for uri in files(out) for unit in read_table(uri, ["unit_id"]).column("unit_id").to_pylist()}


def tables(out: str, units: Set[str]) -> Iterator[pa.Table]:
    """The rows of `units`, file by file, each once. Raises ShardError where two rows of a unit disagree.

    Rows of other units, such as those of a video that has changed since, are passed over.
    """
    seen: dict[str, str] = {}
    for uri in files(out):
        table = read_table(uri)
        fresh = []
        for index, unit in enumerate(table.column("unit_id").to_pylist()):
            content = _content(table.slice(index, 1)) if unit in units else ""
            fresh.append(unit in units and unit not in seen)
            if unit in units and seen.setdefault(unit, content) != content:
                raise ShardError(
                    f"two tries of {unit} in {out} disagree; the build, device or library versions "
                    f"changed in between: delete {out} and make it anew"
                )
        yield table.filter(pa.array(fresh, pa.bool_()))


def kept_clips(table: pa.Table, kind: Kind) -> pa.Table:
    """The clips of some rows that were not rejected, as a table of `clip_schema(kind)`."""
    clips = pc.list_flatten(table.column("clips"))
    chunks = [pa.RecordBatch.from_struct_array(chunk) for chunk in clips.chunks]
    flat = pa.Table.from_batches(chunks, schema=pa.schema(list(clips.type)))
    return (
        flat.filter(pc.is_null(flat.column("rejected")))
        .select(clip_schema(kind).names)
        .cast(clip_schema(kind))
    )


def outcomes(table: pa.Table) -> pa.Table:
    return table.select([field.name for field in OUTCOME_FIELDS])


def _content(row: pa.Table) -> str:
    """Hash of all that two tries of a unit must agree on."""
    fields: dict[str, Any] = row.drop_columns(list(CIRCUMSTANCES)).to_pylist()[0]
    clips = fields.pop("clips")
    payloads = [
        {name: hashing.sha256_bytes(v) if isinstance(v, bytes) else v for name, v in clip.items()}
        for clip in clips
    ]
    return hashing.digest([fields, payloads])
