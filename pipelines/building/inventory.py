"""The sources that an output knows: a file that storage calls unchanged is not looked into again.

They are noted while they come, so that a command that is killed and repeated looks into what is left.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.storage import FileInfo
from pipelines.spans import SOURCE_SCHEMA, UNREADABLE
from pipelines.tables import empty_table, read_table, write_table

INVENTORY = "inventory.parquet"
FILE_COLUMNS = ("uri", "name", "size", "modified")
"""What tells that a file is the one looked into before."""

LEAST_SECONDS = 1.0
"""Between two times that the inventory is written."""
WRITING_SHARE = 20
"""One part in so many of the time may go to that: with 10^6 sources, or on a slow store, it takes longer."""

Inspect = Callable[[pa.Table], Iterable[pa.Table]]
"""Files (FILE_COLUMNS) to what comes of looking into them (INSPECTED_SCHEMA), in any order."""


@dataclass(frozen=True, slots=True)
class Found:
    sources: pa.Table
    """Of SOURCE_SCHEMA, by name."""
    left: dict[str, str]
    """By name: why a file is not to be had as it was listed. It is noted nowhere."""


def listed(files: Sequence[FileInfo]) -> pa.Table:
    """What `Inspect` takes."""
    return pa.table({name: [getattr(file, name) for file in files] for name in FILE_COLUMNS})


def known_sources(out: str) -> pa.Table:
    """What was found so far, of SOURCE_SCHEMA; also of files that are not there any more."""
    place = storage.join(out, INVENTORY)
    return (
        read_table(place).select(SOURCE_SCHEMA.names) if storage.exists(place) else empty_table(SOURCE_SCHEMA)
    )


def sources_of(
    out: str, files: list[FileInfo], inspect: Inspect, clock: Callable[[], float] = time.monotonic
) -> Found:
    """The sources behind `files`; those that are new or have changed are inspected and noted, and so are
    those that could not be read: permissions change without a trace in a file's times."""
    known = known_sources(out)
    known = known.filter(pc.invert(pc.starts_with(known.column("source_id"), UNREADABLE)))
    found = listed(files).join(known, list(FILE_COLUMNS), join_type="left outer", use_threads=False)
    fresh = found.filter(pc.is_null(found.column("source_id"))).select(FILE_COLUMNS)
    sources = found.filter(pc.is_valid(found.column("source_id"))).select(SOURCE_SCHEMA.names)
    notes, left = _Notes(out, known, clock), dict[str, str]()
    try:
        for inspected in inspect(fresh.sort_by("name")) if fresh.num_rows else ():
            is_left = pc.is_valid(inspected.column("left"))
            left.update((file["name"], file["left"]) for file in inspected.filter(is_left).to_pylist())
            notes.add(inspected.filter(pc.invert(is_left)).select(SOURCE_SCHEMA.names))
    finally:
        notes.write()
    return Found(pa.concat_tables([sources, notes.new]).sort_by("name"), left)


class _Notes:
    """The inventory, written anew whenever some time has gone by: a kill costs what has come since."""

    def __init__(self, out: str, known: pa.Table, clock: Callable[[], float]) -> None:
        self._place = storage.join(out, INVENTORY)
        self._known = known
        self._waiting: list[pa.Table] = []
        self._clock = clock
        self._due = clock() + LEAST_SECONDS
        self.new = empty_table(SOURCE_SCHEMA)

    def add(self, sources: pa.Table) -> None:
        self._waiting.append(sources)
        if self._clock() >= self._due:
            self.write()

    def write(self) -> None:
        if not self._waiting:
            return
        began = self._clock()
        new = pa.concat_tables([self.new, *self._waiting]).combine_chunks()
        stale = pc.is_in(self._known.column("uri"), new.column("uri").combine_chunks())
        write_table(self._place, pa.concat_tables([self._known.filter(pc.invert(stale)), new]))
        self.new, self._waiting = new, []
        ended = self._clock()
        self._due = ended + max(LEAST_SECONDS, WRITING_SHARE * (ended - began))


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
    is_new = pc.invert(pc.is_in(given.column("source_id"), former.column("source_id").combine_chunks()))
    former = former.filter(pc.invert(_gave_way(former, given.filter(is_new).column("name").to_pylist())))
    refused = pc.and_(is_new, pc.is_in(given.column("name"), former.column("name").combine_chunks()))
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


def _gave_way(former: pa.Table, new_names: list[str]) -> pa.Array:
    """Which of a sealed set's sources could not be read, and now there are others in their place."""
    folders = {f"{above}/" for name in new_names for above in map(str, PurePosixPath(name).parents)}
    replaced = pc.is_in(former.column("name"), pa.array({*new_names, *folders}, pa.string()))
    return pc.and_(replaced, pc.starts_with(former.column("source_id"), UNREADABLE))
