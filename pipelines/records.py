"""Span files: the record of work done, one row a unit, whatever its fate.

    OUT/spans/<row key>/<attempt>.parquet

A unit is what one try does: a span of a source, or a row group of a frame set. The row key is a hash of what
determines a row, so that rows of other settings neither count nor are lost. A row is complete or absent,
under a name no other attempt uses, so that any process may be killed at any time and a rerun does what is
missing. It holds every clip that was cut, with its scores; the payload of those that were to be kept, of all
or of none, as was asked for.
"""

import uuid
from collections.abc import Iterator, Set
from typing import Any

import pyarrow as pa

from infra import hashing, storage
from pipelines.shards import FORMAT_VERSION, Kind, clip_schema
from pipelines.tables import read_table, read_tables, write_table

FOLDER = "spans"
ROWS_PER_GROUP = 1024

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
    pa.field("cut_seconds", pa.list_(pa.float64())),
    pa.field("num_frames", pa.int64(), nullable=False),
    pa.field("num_clips", pa.int64(), nullable=False),
    pa.field("rejected", pa.map_(pa.string(), pa.int64())),
]
"""What became of a span: `ok`, `filtered` (nothing kept, `rejected` counts the reasons) or `failed`.

A span that is `ok` or `filtered` and has an `error_class` was damaged in part: what could be decoded is
there.
"""


def record_schema(kind: Kind) -> pa.Schema:
    """Columns of a row. `judged_by` is the key of the thresholds that `rejected` and `outcome` follow, and by
    which payloads were kept; null where none were.

    A clip without a payload has no shape either.
    """
    payload = clip_schema(kind)
    clip = pa.struct([field.with_nullable(True) for field in payload] + [pa.field("rejected", pa.string())])
    return pa.schema(
        [
            pa.field("unit_id", pa.string(), nullable=False),
            *OUTCOME_FIELDS,
            pa.field("judged_by", pa.string()),
            pa.field("attempts", pa.int32(), nullable=False),
            pa.field("decode_cpu_seconds", pa.float64(), nullable=False),
            pa.field("tokenize_seconds", pa.float64(), nullable=False),
            pa.field("clips", pa.large_list(clip), nullable=False),
        ]
    )


def place_of(out: str, kind: Kind, settings: dict[str, Any]) -> str:
    """The folder of the rows that `settings` determine."""
    key = hashing.digest([FORMAT_VERSION, kind, settings])[:16]
    return storage.join(out, FOLDER, key)


def write(place: str, rows: pa.Table) -> None:
    """Puts rows under a name of their own in `place`."""
    write_table(storage.join(place, f"{uuid.uuid4().hex}.parquet"), rows, rows_per_group=ROWS_PER_GROUP)


def files(place: str) -> list[str]:
    return [file.uri for file in storage.list_files(place)]


def done_units(place: str) -> set[str]:
    """Ids of the units that have a row."""
    return {unit for table in tables(place, ["unit_id"]) for unit in table.column("unit_id").to_pylist()}


def tables(place: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """What the span files hold, file by file."""
    yield from read_tables(files(place), columns)


def forget(place: str, units: Set[str], error_class: str) -> None:
    """Removes the rows of these units with this error, a file at a time: what else is in it is put anew."""
    for uri in files(place):
        table = read_table(uri, ["unit_id", "error_class"])
        stays = [
            unit not in units or error != error_class
            for unit, error in zip(*(column.to_pylist() for column in table.columns), strict=True)
        ]
        if all(stays):
            continue
        if any(stays):
            write(place, read_table(uri).filter(pa.array(stays)))
        storage.delete(uri)


def clips_of(table: pa.Table) -> pa.Table:
    """The clips of some rows, one row each, with `judged_by` of the row that each is from."""
    lists = table.column("clips").combine_chunks()
    clips = pa.RecordBatch.from_struct_array(lists.flatten())
    flat = pa.Table.from_batches([clips])
    if "judged_by" not in table.column_names:
        return flat
    return flat.append_column("judged_by", table.column("judged_by").take(lists.value_parent_indices()))


def outcomes(table: pa.Table) -> pa.Table:
    return table.select([field.name for field in OUTCOME_FIELDS])
