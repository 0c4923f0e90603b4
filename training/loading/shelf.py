"""Some shards of one set, read through a cache of this machine where they lie elsewhere; and their clips as
they are stored, for measuring and drawing."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import storage
from infra.byte_cache import ByteCache
from pipelines.row_groups import RowGroups
from pipelines.shards import ShardEntry, ShardSet
from training.configs.batches import BatchesConfig
from training.loading.sequence import Shape

Clip = NDArray[np.integer[Any]]
"""Frames (T, H, W, 3) uint8 or codes (t, h, w) uint16."""


@dataclass(frozen=True, slots=True)
class Shelf:
    shard_set: ShardSet
    entries: tuple[ShardEntry, ...]
    caching: BatchesConfig | None = None
    """How this machine keeps what it fetches from elsewhere; None: it does not."""

    @property
    def num_clips(self) -> int:
        return sum(entry.rows for entry in self.entries)

    def clips_by_shape(self) -> dict[Shape, int]:
        return {shape: sum(e.rows for e in entries) for shape, entries in self.by_shape().items()}

    def by_shape(self) -> dict[Shape, list[ShardEntry]]:
        def shape(entry: ShardEntry) -> Shape:
            return entry.shape

        filled = sorted((entry for entry in self.entries if entry.rows), key=shape)
        return {grid: list(entries) for grid, entries in groupby(filled, key=shape)}

    def row_groups(self) -> RowGroups:
        """Raises UsageError where there can be no cache for what lies elsewhere."""
        return RowGroups(self.shard_set, _open_cache(self.caching, self.shard_set.uri))


def _open_cache(config: BatchesConfig | None, uri: str) -> ByteCache | None:
    """For what is read of the shard set at `uri`; None where it lies on this machine, or none is wanted."""
    if config is None or not config.cache_gb or storage.is_local(uri):
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = config.cache_dir or os.path.join(home, "reelgpt", "shards")
    return ByteCache(storage.absolute(folder), max_bytes=int(config.cache_gb * 1e9))


def stored_clips(shelves: Sequence[Shelf], *, max_clips: int | None = None) -> Iterator[tuple[str, Clip]]:
    """Ids and clips; with `max_clips`, that many, evenly from all of them."""
    total = sum(shelf.num_clips for shelf in shelves)
    wanted = total if max_clips is None else min(max_clips, total)
    chosen = {i * total // wanted for i in range(wanted)} if wanted else set()
    position = 0
    for shelf in shelves:
        row_groups = shelf.row_groups()
        for entry in shelf.entries:
            for index, num_rows in enumerate(entry.row_groups):
                rows = [row for row in range(num_rows) if position + row in chosen]
                if rows:
                    clips = row_groups.read(entry, index)
                    yield from ((clips.ids[row].decode(), clips.arrays[row]) for row in rows)
                position += num_rows


def clips_of_some_groups(shelves: Sequence[Shelf], *, max_values: int) -> Iterator[Clip]:
    """The clips of whole row groups, evenly from all of them, so many that they hold some `max_values` codes.

    What a part of a large set costs to read is then what that part is large.
    """
    groups = [
        (row_groups, entry, index)
        for row_groups, shelf in ((shelf.row_groups(), shelf) for shelf in shelves)
        for entry in shelf.entries
        for index in range(len(entry.row_groups))
    ]
    num_values = sum(entry.row_groups[index] * math.prod(entry.shape) for _, entry, index in groups)
    wanted = min(len(groups), max(1, len(groups) * max_values // max(1, num_values)))
    for row_groups, entry, index in (groups[i * len(groups) // wanted] for i in range(wanted)):
        yield from row_groups.read(entry, index).arrays
