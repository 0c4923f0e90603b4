"""The sources that an output knows: a file that storage calls unchanged is not looked into again."""

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
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


def forget(out: str, names: Iterable[str]) -> None:
    """Has these sources looked into again by the next command, whatever storage says of their change."""
    known = known_sources(out)
    gone = pc.is_in(known.column("name"), pa.array(names, pa.string()))
    write_table(storage.join(out, INVENTORY), known.filter(pc.invert(gone)))


def joined(former: pa.Table, given: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """The sources of a sealed set, at the places given where they are given, and the given ones that are new;
    and the names of those that are refused, since the set holds them with another content.

    Those that could not be read give way to what has their names now, or lies in their folder.
    """
    former = former.filter(pc.invert(_gave_way(former, _not_held(former, given))))
    taken = pc.is_in(given.column("name"), former.column("name").combine_chunks())
    held = pc.is_in(given.column("source_id"), former.column("source_id").combine_chunks())
    refused = pc.and_(taken, pc.invert(held))
    names, given = given.filter(refused).column("name").to_pylist(), given.filter(pc.invert(refused))
    known = pc.invert(pc.is_in(former.column("source_id"), given.column("source_id").combine_chunks()))
    columns = [name for name in SOURCE_SCHEMA.names if name in former.column_names]
    sources = pa.concat_tables([former.filter(known).select(columns), given.select(columns)])
    return sources.sort_by("name"), tuple(names)


def located(former: pa.Table, out: str) -> pa.Table:
    """The sources of a sealed set, each where `out` knows it to have been last."""
    known = known_sources(out)
    places = dict(zip(*(known.column(name).to_pylist() for name in ("source_id", "uri")), strict=True))
    ids, uris = former.column("source_id").to_pylist(), former.column("uri").to_pylist()
    found = [places.get(source_id, uri) for source_id, uri in zip(ids, uris, strict=True)]
    return former.set_column(former.schema.get_field_index("uri"), "uri", pa.array(found, pa.string()))


def _not_held(former: pa.Table, given: pa.Table) -> list[str]:
    """Names of those given that a sealed set does not hold."""
    held = pc.is_in(given.column("source_id"), former.column("source_id").combine_chunks())
    names: list[str] = given.filter(pc.invert(held)).column("name").to_pylist()
    return names


def _gave_way(former: pa.Table, new_names: list[str]) -> pa.Array:
    """Which of a sealed set's sources could not be read, and now there are others in their place."""
    folders = {f"{above}/" for name in new_names for above in map(str, PurePosixPath(name).parents)}
    replaced = pc.is_in(former.column("name"), pa.array({*new_names, *folders}, pa.string()))
    return pc.and_(replaced, pc.starts_with(former.column("source_id"), UNREADABLE))
