"""Captions, labels and actions of clips, joined from a sidecar when a set is packed.

A row is for a source, by its name or URI, or for a part of it. A clip takes what is said of its middle, value
by value, from the narrowest part that says something. What the set holds of a sidecar is its content: the
place, format and order of the file change nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra import hashing, storage
from pipelines.packing.sidecar_files import SCHEMA, VALUES, read_sidecar
from pipelines.tables import empty_table, read_table, write_table

NUM_NAMED = 5
"""Sources that are named as unknown."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sidecar:
    rows: pa.Table
    """Of sidecar_files.SCHEMA, sorted."""
    digest: str

    @classmethod
    def read(cls, uri: str) -> "Sidecar":
        """What the file at `uri` says. Raises UsageError."""
        return cls.of(read_sidecar(uri))

    @classmethod
    def of(cls, table: pa.Table) -> "Sidecar":
        rows = sorted(table.to_pylist(), key=lambda row: hashing.canonical_json(list(row.values())))
        return cls(pa.Table.from_pylist(rows, SCHEMA), hashing.digest(rows))

    @classmethod
    def kept_in(cls, out: str, digest: str) -> "Sidecar":
        """The copy that a set keeps."""
        return cls(read_table(_place(out, digest)), digest)

    def copy_to(self, out: str) -> None:
        if self.digest and not storage.exists(_place(out, self.digest)):
            write_table(_place(out, self.digest), self.rows)

    def joined_to(self, sources: pa.Table) -> "Joined":
        return Joined(self.rows.to_pylist(), sources)


class Joined:
    """A sidecar beside the sources of a set."""

    def __init__(self, rows: Iterable[Row], sources: pa.Table) -> None:
        columns = (sources.column(name).to_pylist() for name in ("source_id", "name", "uri"))
        known: dict[str, str] = {}
        for source_id, name, uri in zip(*columns, strict=True):
            known |= {name: source_id}
            known.setdefault(uri, source_id)
        self._of_source: dict[str, list[Row]] = {}
        self._num_rows, self._strange = 0, list[str]()
        for row in rows:
            self._num_rows += 1
            if row["source"] in known:
                self._of_source.setdefault(known[row["source"]], []).append(row)
            else:
                self._strange.append(row["source"])
        for said in self._of_source.values():
            said.sort(key=lambda row: (_length(row), -(row["start_seconds"] or 0.0)))

    def summary(self) -> dict[str, Any]:
        """How many rows there are, how many of them match no source, and some of their names."""
        some = sorted(set(self._strange))[:NUM_NAMED]
        return {"rows": self._num_rows, "unmatched_rows": len(self._strange), "unmatched": some}

    def applied_to(self, clips: pa.Table) -> pa.Table:
        """The clips with what is said of them in place of what they had."""
        facts = clips.select(["source_id", "start_seconds", "num_frames", "fps"]).to_pylist()
        said = [self._said_of(clip) for clip in facts]
        for name in VALUES:
            place = clips.schema.get_field_index(name)
            values = pa.array([one.get(name) for one in said], SCHEMA.field(name).type)
            clips = clips.set_column(place, SCHEMA.field(name), values)
        return clips

    def _said_of(self, clip: Row) -> Row:
        middle = clip["start_seconds"] + clip["num_frames"] / clip["fps"] / 2
        found: Row = {}
        for row in self._of_source.get(clip["source_id"], ()):
            end = row["end_seconds"]
            if (row["start_seconds"] or 0.0) <= middle < (math.inf if end is None else end):
                found = {name: row[name] for name in VALUES if row[name] is not None} | found
        return found


NOTHING = Sidecar(empty_table(SCHEMA), "")
"""Says nothing of any clip."""


def _length(row: Row) -> float:
    end = row["end_seconds"]
    return math.inf if end is None else end - (row["start_seconds"] or 0.0)


def _place(out: str, digest: str) -> str:
    return storage.join(out, f"sidecar-{digest[:16]}.parquet")
