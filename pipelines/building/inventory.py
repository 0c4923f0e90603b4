"""The sources that an output knows: a file that storage calls unchanged is not looked into again."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import UsageError
from infra.storage import FileInfo
from pipelines.spans import SOURCE_SCHEMA, UNREADABLE
from pipelines.tables import read_table, write_table

INVENTORY = "inventory.parquet"
FILE_COLUMNS = ("uri", "name", "size", "modified")
"""What tells that a file is the one looked into before."""

Inspect = Callable[[pa.Table], pa.Table]
"""Files (FILE_COLUMNS) to sources (SOURCE_SCHEMA)."""


def known_sources(out: str) -> pa.Table:
    """What was found so far, of SOURCE_SCHEMA; also of files that are not there any more."""
    place = storage.join(out, INVENTORY)
    return (
        read_table(place).select(SOURCE_SCHEMA.names)
        if storage.exists(place)
        else SOURCE_SCHEMA.empty_table()
    )


def sources_of(out: str, files: list[FileInfo], inspect: Inspect) -> pa.Table:
    """The sources behind `files`, by name; those that are new or have changed are inspected and noted, and so
    are those that could not be read: permissions change without a trace in a file's times."""
    listed = pa.table({name: [getattr(file, name) for file in files] for name in FILE_COLUMNS})
    known = known_sources(out)
    known = known.filter(pc.invert(pc.starts_with(known.column("source_id"), UNREADABLE)))
    found = listed.join(known, list(FILE_COLUMNS), join_type="left outer", use_threads=False)
    fresh = found.filter(pc.is_null(found.column("source_id"))).select(FILE_COLUMNS)
    sources = found.filter(pc.is_valid(found.column("source_id"))).select(SOURCE_SCHEMA.names)
    if fresh.num_rows:
        inspected = inspect(fresh.sort_by("name")).select(SOURCE_SCHEMA.names)
        sources = pa.concat_tables([sources, inspected])
        stale = pc.is_in(known.column("uri"), inspected.column("uri").combine_chunks())
        write_table(
            storage.join(out, INVENTORY), pa.concat_tables([known.filter(pc.invert(stale)), inspected])
        )
    return sources.sort_by("name")


def joined(former: pa.Table, given: pa.Table) -> pa.Table:
    """The sources of a sealed set, at the places given where they are given, and the given ones that are new.

    Those that could not be read give way to what has their names now. Raises UsageError where a name stands
    for another file than before.
    """
    new = new_sources(former, given)
    was_readable = pc.invert(pc.starts_with(former.column("source_id"), UNREADABLE))
    gave_way = pc.is_in(former.column("name"), new.column("name").combine_chunks())
    former = former.filter(pc.or_(was_readable, pc.invert(gave_way)))
    taken = pc.is_in(new.column("name"), former.column("name").combine_chunks())
    if pc.any(taken).as_py():
        name = new.filter(taken).column("name")[0].as_py()
        raise UsageError(
            f"{name} is in the set with another content; give the new file another name, or another output"
        )
    known = pc.invert(pc.is_in(former.column("source_id"), given.column("source_id").combine_chunks()))
    columns = [name for name in SOURCE_SCHEMA.names if name in former.column_names]
    return pa.concat_tables([former.filter(known).select(columns), given.select(columns)]).sort_by("name")


def located(former: pa.Table, out: str) -> pa.Table:
    """The sources of a sealed set, each where `out` knows it to have been last."""
    known = known_sources(out)
    places = dict(zip(*(known.column(name).to_pylist() for name in ("source_id", "uri")), strict=True))
    ids, uris = former.column("source_id").to_pylist(), former.column("uri").to_pylist()
    found = [places.get(source_id, uri) for source_id, uri in zip(ids, uris, strict=True)]
    return former.set_column(former.schema.get_field_index("uri"), "uri", pa.array(found, pa.string()))


def new_sources(former: pa.Table, given: pa.Table) -> pa.Table:
    """Those given that a sealed set does not hold."""
    held = pc.is_in(given.column("source_id"), former.column("source_id").combine_chunks())
    return given.filter(pc.invert(held))
