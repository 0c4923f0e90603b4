"""The order of one shuffled stream of clips: pure arithmetic on (seed, epoch), whatever the clips are.

An epoch visits row groups in a shuffled order, and rows shuffled within windows of K row groups. Epochs
follow each other without a seam into one endless stream. Shuffling is our own integer arithmetic: no
library's update can change an order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """K row groups whose rows are shuffled among each other."""

    epoch: int
    number: int
    groups: Indices
    """In the order in which they are laid one after the other."""
    rows: Indices
    """Of the groups so laid, in the order in which the stream takes them."""


class Order:
    """The endless stream of the clips in some row groups: position -> (window, place in it)."""

    def __init__(self, group_sizes: Sequence[int], *, key: tuple[int, ...], window_groups: int) -> None:
        """`key`: what beside the epoch the order depends on, as the seed."""
        self._sizes = np.asarray(group_sizes, dtype=np.int64)
        self._key = key
        self.window_groups = window_groups
        self.clips_per_epoch = int(self._sizes.sum())
        self.windows_per_epoch = -(-len(self._sizes) // window_groups)
        self._epoch = lru_cache(maxsize=2)(self._arrange_epoch)
        self.window = lru_cache(maxsize=4)(self._arrange_window)

    def parts(self, position: int, count: int) -> Iterator[tuple[Window, Indices]]:
        """The clips from `position` on, counted from the first of the run: windows, and rows in each."""
        while count:
            epoch, at = divmod(position, self.clips_per_epoch)
            _, ends = self._epoch(epoch)
            number = int(np.searchsorted(ends, at, side="right"))
            window = self.window(epoch, number)
            start = at - (int(ends[number]) - len(window.rows))
            rows = window.rows[start : start + count]
            yield window, rows
            position, count = position + len(rows), count - len(rows)

    def after(self, window: Window) -> Window:
        """The window that the stream comes to next."""
        if window.number + 1 < self.windows_per_epoch:
            return self.window(window.epoch, window.number + 1)
        return self.window(window.epoch + 1, 0)

    def _arrange_epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """Row groups in the epoch's order, and the position at which each window of them ends."""
        groups = shuffled(len(self._sizes), *self._key, epoch)
        ends = np.cumsum(self._sizes[groups])
        last = np.arange(self.window_groups - 1, len(groups) + self.window_groups - 1, self.window_groups)
        return groups, ends[np.minimum(last, len(groups) - 1)]

    def _arrange_window(self, epoch: int, number: int) -> Window:
        first = number * self.window_groups
        groups = self._epoch(epoch)[0][first : first + self.window_groups]
        rows = shuffled(int(self._sizes[groups].sum()), *self._key, epoch, number)
        return Window(epoch, number, groups, rows)


def shuffled(count: int, *key: int) -> Indices:
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
