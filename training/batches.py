"""Shard set to batches: which clips a step takes is arithmetic on (seed, step), whoever asks.

An epoch visits row groups in a shuffled order, and rows shuffled within windows of K row groups. Epochs
follow each other without a seam into one endless sequence of clips, of which step s takes G, cut into
micro-batches before any worker sees them. So the order depends neither on world size nor on where a run was
interrupted, and resuming at any step costs the same. Shuffling is our own integer arithmetic: no library's
update can change an order.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import ConfigError
from pipelines import shards
from pipelines.shards import ShardEntry, ShardSet
from training.batches_config import BatchesConfig

Clip = NDArray[np.integer[Any]]
"""Frames (T, H, W, 3) uint8 or codes (t, h, w) uint16."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    entry: ShardEntry
    index: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    index: int
    """Among all micro-batches of its step, over all workers: with seed and step it seeds all chance in it."""
    clip_ids: tuple[str, ...]
    clips: tuple[Clip, ...]


class Order:
    """The endless sequence of clips: position -> (row group, row)."""

    def __init__(self, group_sizes: Sequence[int], *, seed: int, window_groups: int) -> None:
        self._sizes = np.asarray(group_sizes, dtype=np.int64)
        self._seed = seed
        self._window_groups = window_groups
        self.clips_per_epoch = int(self._sizes.sum())
        self._epoch = lru_cache(maxsize=2)(self._arrange_epoch)
        self._window = lru_cache(maxsize=2)(self._arrange_window)

    def place(self, position: int) -> tuple[int, int]:
        """Row group and row of the clip at `position`, counted from the first step of the run."""
        epoch, at = divmod(position, self.clips_per_epoch)
        _, window_ends = self._epoch(epoch)
        window = int(np.searchsorted(window_ends, at, side="right"))
        start = int(window_ends[window - 1]) if window else 0
        groups, rows = self._window(epoch, window)
        return int(groups[at - start]), int(rows[at - start])

    def _arrange_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row groups in the epoch's order, and the position at which each window of them ends."""
        groups = shuffled(len(self._sizes), self._seed, epoch)
        ends = np.cumsum(self._sizes[groups])
        last = np.arange(self._window_groups - 1, len(groups) + self._window_groups - 1, self._window_groups)
        return groups, ends[np.minimum(last, len(groups) - 1)]

    def _arrange_window(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row group and row of each clip of a window, in its order."""
        first = window * self._window_groups
        groups = self._epoch(epoch)[0][first : first + self._window_groups]
        sizes = self._sizes[groups]
        rows = np.concatenate([np.arange(size) for size in sizes])
        order = shuffled(len(rows), self._seed, epoch, window)
        return np.repeat(groups, sizes)[order], rows[order]


class Batches:
    """The batches of a run, as one rank reads them."""

    def __init__(
        self,
        shard_set: ShardSet,
        entries: Sequence[ShardEntry],
        config: BatchesConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Of the clips in `entries`. Raises ConfigError where there are none, or a batch does not divide."""
        groups = [RowGroup(entry, i, rows) for entry in entries for i, rows in enumerate(entry.row_groups)]
        if not sum(group.num_rows for group in groups):
            raise ConfigError(f"{shard_set.uri} has no clip to train on; extract longer or more videos")
        self._config = config
        self._rank = rank
        self._world_size = world_size
        self._accumulated = config.micro_batches_per_worker(world_size)
        self._order = Order([g.num_rows for g in groups], seed=seed, window_groups=config.window_groups)
        self._reader = Reader(shard_set, groups, num_kept=config.window_groups)

    @property
    def clips_per_epoch(self) -> int:
        return self._order.clips_per_epoch

    def epoch(self, step: int) -> float:
        """Epochs seen once `step` is done."""
        return step * self._config.global_batch / self._order.clips_per_epoch

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's share of step 1, 2, ...; with the clips' ids."""
        indices = range(self._rank, self._accumulated * self._world_size, self._world_size)
        return [self._read(step, index) for index in indices]

    def _read(self, step: int, index: int) -> MicroBatch:
        first = (step - 1) * self._config.global_batch + index * self._config.micro_batch
        places = [self._order.place(first + i) for i in range(self._config.micro_batch)]
        clip_ids, clips = zip(*(self._reader.clip(group, row) for group, row in places), strict=True)
        return MicroBatch(index, clip_ids, clips)


class Reader:
    """Reads clips by row group, and keeps the row groups of a window."""

    def __init__(self, shard_set: ShardSet, groups: Sequence[RowGroup], *, num_kept: int) -> None:
        self._shard_set = shard_set
        self._groups = groups
        self._num_kept = num_kept
        self._kept: OrderedDict[int, tuple[list[str], list[Clip]]] = OrderedDict()

    def clip(self, group: int, row: int) -> tuple[str, Clip]:
        clip_ids, clips = self._load(group)
        return clip_ids[row], clips[row]

    def _load(self, group: int) -> tuple[list[str], list[Clip]]:
        if group in self._kept:
            self._kept.move_to_end(group)
        else:
            self._kept[group] = read_clips(self._shard_set, self._groups[group])
            if len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
        return self._kept[group]


def stored_clips(
    shard_set: ShardSet, entries: Sequence[ShardEntry], *, max_clips: int | None = None
) -> Iterator[tuple[str, Clip]]:
    """Clips of `entries` in stored order; with `max_clips`, that many, evenly from all of them."""
    total = sum(entry.rows for entry in entries)
    wanted = total if max_clips is None else min(max_clips, total)
    chosen = {i * total // wanted for i in range(wanted)} if wanted else set()
    position = 0
    for entry in entries:
        for index, num_rows in enumerate(entry.row_groups):
            rows = [row for row in range(num_rows) if position + row in chosen]
            if rows:
                clip_ids, clips = read_clips(shard_set, RowGroup(entry, index, num_rows))
                yield from ((clip_ids[row], clips[row]) for row in rows)
            position += num_rows


def read_clips(shard_set: ShardSet, group: RowGroup) -> tuple[list[str], list[Clip]]:
    """Ids and arrays of one row group."""
    is_tokens = shard_set.manifest.kind == "tokens"
    payload = ["grid", "codes"] if is_tokens else ["shape", "frames"]
    table = shard_set.read_row_group(group.entry, group.index, ["clip_id", *payload])
    arrays: list[Clip] = list(shards.codes_of(table) if is_tokens else shards.frames_of(table))
    return table.column("clip_id").to_pylist(), arrays


def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(count) that is a pure function of `key`."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            state = _mix((state ^ np.uint64(part)) + _GOLDEN)
        return np.argsort(_mix(np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN ^ state), kind="stable")


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
