"""The endless shuffled stream of one grid of one shard set, read window by window, the next one ahead.

What comes when is the matter of `order`; what bytes it takes, of `pipelines.row_groups`. Here a window is
laid into one array, so that a batch is one gather.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.row_groups import Clips, RowGroups
from pipelines.shards import ShardEntry
from training.loading.order import Indices, Order, Window

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
            self._loading[key] = self._start(window)
            if len(self._loading) > KEPT_WINDOWS:
                self._loading.popitem(last=False)
        return self._loading[key]

    def _start(self, window: Window) -> "_Loading":
        places = [self._place(int(group)) for group in window.groups]
        return _Loading([self._readers.submit(self._row_groups.read, *place) for place in places])

    def _place(self, group: int) -> tuple[ShardEntry, int]:
        number = int(np.searchsorted(self._ends, group, side="right"))
        entry = self._entries[number]
        return entry, group - int(self._ends[number]) + len(entry.row_groups)


class _Loading:
    """A window whose row groups are being read."""

    def __init__(self, groups: Sequence["Future[Clips]"]) -> None:
        self._groups = groups
        self._whole: Clips | None = None

    def take(self, rows: Indices) -> Clips:
        """Waits for the window; gives a copy of its `rows`."""
        if self._whole is None:
            self._whole = _joined([group.result() for group in self._groups])
            self._groups = ()
        return Clips(self._whole.ids[rows], self._whole.arrays[rows])


def _joined(parts: Sequence[Clips]) -> Clips:
    arrays: NDArray[np.integer[Any]] = np.concatenate([part.arrays for part in parts])
    return Clips(np.concatenate([part.ids for part in parts]), arrays)
