"""The endless shuffled stream of one grid of one shard set, read window by window, the next one ahead.

What comes when is the matter of `order`; what bytes it takes, of `pipelines.row_groups`. Here a window is
laid into one array, so that a batch is one gather; and the array is used again, since memory that is new to a
process costs as much as what is read into it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.row_groups import Clips, RowGroups
from pipelines.shards import ShardEntry
from training.loading.order import Indices, Order, Window

Codes = NDArray[np.integer[Any]]
KEPT_WINDOWS = 2
"""The one that is read from, and the one after it."""


class Stream:
    def __init__(
        self,
        row_groups: RowGroups,
        entries: Sequence[ShardEntry],
        *,
        key: tuple[int, ...],
        window_groups: int,
        readers: Executor,
    ) -> None:
        """Of the clips in `entries`, all of one shape, in the order of `key`."""
        self._row_groups = row_groups
        self._entries = entries
        self._ends = np.cumsum([len(entry.row_groups) for entry in entries])
        """The row groups are numbered through: those of an entry end before this."""
        sizes = [rows for entry in entries for rows in entry.row_groups]
        self._sizes = np.array(sizes)
        self._order = Order(sizes, key=key, window_groups=window_groups)
        self._readers = readers
        self._loading: OrderedDict[tuple[int, int], _Loading] = OrderedDict()

    def read(self, first: int, count: int) -> Clips:
        """The clips from `first` on, counted from the first clip of the run."""
        parts = []
        for window, rows in self._order.parts(first, count):
            parts.append(self._load(window).take(rows))
            self._load(self._order.after(window))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _load(self, window: Window) -> "_Loading":
        key = window.epoch, window.number
        if key not in self._loading:
            self._loading[key] = self._start(window, self._room())
        return self._loading[key]

    def _room(self) -> Codes:
        """An array for a window: that of the oldest, once there are as many as are kept."""
        if len(self._loading) == KEPT_WINDOWS:
            return self._loading.popitem(last=False)[1].give_up()
        largest = np.sort(self._sizes)[-self._order.window_groups :].sum()
        shape, dtype = self._entries[0].shape, self._row_groups.dtype
        return np.empty((largest, *shape), dtype)

    def _start(self, window: Window, room: Codes) -> "_Loading":
        ends = np.cumsum(self._sizes[window.groups])
        reads = []
        for group, end in zip(window.groups.tolist(), ends.tolist(), strict=True):
            rows = room[end - int(self._sizes[group]) : end]
            reads.append(self._readers.submit(self._read_into, rows, *self._place(group)))
        return _Loading(room, reads)

    def _read_into(self, rows: Codes, entry: ShardEntry, index: int) -> NDArray[np.bytes_]:
        """The clips' ids."""
        clips = self._row_groups.read(entry, index)
        rows[:] = clips.arrays
        return clips.ids

    def _place(self, group: int) -> tuple[ShardEntry, int]:
        number = int(np.searchsorted(self._ends, group, side="right"))
        entry = self._entries[number]
        return entry, group - int(self._ends[number]) + len(entry.row_groups)


class _Loading:
    """A window whose row groups are being read."""

    def __init__(self, room: Codes, reads: Sequence["Future[NDArray[np.bytes_]]"]) -> None:
        self._room = room
        self._reads = reads
        self._ids: NDArray[np.bytes_] | None = None

    def take(self, rows: Indices) -> Clips:
        """Waits for the window; gives a copy of its `rows`."""
        if self._ids is None:
            self._ids = np.concatenate([read.result() for read in self._reads])
        return Clips(self._ids[rows], self._room[rows])

    def give_up(self) -> Codes:
        """The array, into which nobody writes any more."""
        for read in self._reads:
            read.cancel()
        wait(self._reads)
        return self._room


def _joined(parts: Sequence[Clips]) -> Clips:
    arrays: NDArray[np.integer[Any]] = np.concatenate([part.arrays for part in parts])
    return Clips(np.concatenate([part.ids for part in parts]), arrays)
