"""The one sequence of micro-batches of a run: the clips of each, before any worker sees it.

A micro-batch holds clips of one grid, of all sets by weight. A pass is as long as all sets together. In a
pass a set gives its share of the clips, each of its clips once in every epoch of its own; and each grid gives
the micro-batches that its clips fill, the rest of them (less than one) running into the next pass. All of it
is arithmetic on the number of the micro-batch, so no state is kept and every place costs the same.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from training.loading.interleaving import BLOCK, apportion, turns
from training.loading.order import Indices

Shape = tuple[int, ...]
"""Of a clip: codes (t, h, w) or frames (T, H, W, 3)."""
GRIDS, SETS = 1, 2
"""Keep the two kinds of turns apart in the key of their shuffle."""


@dataclass(frozen=True, slots=True)
class Stock:
    """What one set has for the run."""

    clips: Mapping[Shape, int]
    """Clips of each grid."""
    share: Fraction
    """Of the clips that the run takes; all shares add up to 1."""

    @property
    def num_clips(self) -> int:
        return sum(self.clips.values())


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring clips of one stream, which is a grid of a set, and where in the micro-batch they go."""

    stock: int
    first: int
    """In the endless stream, counted from the first clip of the run."""
    rows: Indices


class MicroBatches:
    """Number of a micro-batch in the run -> its grid, and the clips in it."""

    def __init__(self, stocks: Sequence[Stock], *, micro_batch: int, seed: int) -> None:
        self._stocks = stocks
        self._micro_batch = micro_batch
        self._seed = seed
        self._grids = sorted({grid for stock in stocks for grid in stock.clips})
        self.clips_per_pass = sum(stock.num_clips for stock in stocks)
        self._mean_clips = [float(self._mean(grid)) for grid in self._grids]
        self._mean_full = self.clips_per_pass / micro_batch
        self._taken = lru_cache(maxsize=64)(self._count_taken)
        self._full = lru_cache(maxsize=64)(self._count_full)
        self._turns = lru_cache(maxsize=8)(turns)

    def find(self, number: int) -> tuple[Shape, list[Piece]]:
        now = self._pass_of(number, lambda n: sum(self._full(n)), mean=self._mean_full)
        sooner, later = self._full(now), self._full(now + 1)
        block, place = divmod(number - sum(sooner), BLOCK)
        grids, nth = self._turns(_differences(sooner, later), block, self._seed, GRIDS, now)
        grid = int(grids[place])
        full = sooner[grid] + int(nth[place])
        return self._grids[grid], list(self._pieces(grid, full * self._micro_batch))

    def _pieces(self, grid: int, first: int) -> Iterator[Piece]:
        """The clips of a micro-batch whose first one is the grid's clip `first` of the run."""
        if len(self._stocks) == 1:
            yield Piece(0, first, np.arange(self._micro_batch))
            return
        row = 0
        while row < self._micro_batch:
            stocks, nth = self._turns_of_sets(grid, first + row)
            stocks, nth = stocks[: self._micro_batch - row], nth[: self._micro_batch - row]
            for stock in np.flatnonzero(np.bincount(stocks)):
                rows = np.flatnonzero(stocks == stock)
                yield Piece(int(stock), int(nth[rows[0]]), row + rows)
            row += len(stocks)

    def _turns_of_sets(self, grid: int, position: int) -> tuple[Indices, Indices]:
        """From the grid's clip `position` to the end of its block: whose it is, and which clip of that set's
        own stream."""
        now = self._pass_of(position, lambda n: sum(self._taken(n)[grid]), mean=self._mean_clips[grid])
        sooner, later = self._taken(now)[grid], self._taken(now + 1)[grid]
        block, place = divmod(position - sum(sooner), BLOCK)
        stocks, nth = self._turns(_differences(sooner, later), block, self._seed, SETS, grid, now)
        return stocks[place:], np.array(sooner)[stocks[place:]] + nth[place:]

    def _count_full(self, num_passes: int) -> list[int]:
        """Micro-batches in the first passes, of each grid."""
        return [sum(by_set) // self._micro_batch for by_set in self._taken(num_passes)]

    def _count_taken(self, num_passes: int) -> list[tuple[int, ...]]:
        """Clips in the first passes, of each grid, from each set."""
        return list(zip(*(self._given_by(stock, num_passes) for stock in self._stocks), strict=True))

    def _given_by(self, stock: Stock, num_passes: int) -> Iterator[int]:
        clips = [stock.clips.get(grid, 0) for grid in self._grids]
        epochs, rest = divmod(int(num_passes * self.clips_per_pass * stock.share), stock.num_clips)
        for whole, part in zip(clips, apportion(rest, clips), strict=True):
            yield epochs * whole + part

    def _mean(self, grid: Shape) -> Fraction:
        """Clips of a grid in a pass."""
        return sum(
            (self.clips_per_pass * s.share * s.clips.get(grid, 0) / s.num_clips for s in self._stocks),
            Fraction(0),
        )

    def _pass_of(self, place: int, before: Callable[[int], int], *, mean: float) -> int:
        """The pass that a place is in, where `before(n)` places lie in the first n passes, `n * mean` but
        for roundings."""
        guess = int(place / mean)
        if before(guess) <= place < before(guess + 1):
            return guess
        roundings = 2 + len(self._grids) + len(self._stocks) * (2 + len(self._grids))
        lowest = max(0, int((place - roundings) / mean) - 1)
        highest = int((place + roundings) / mean) + 2
        return bisect_right(range(highest), place, lo=lowest, key=before) - 1


def _differences(sooner: Sequence[int], later: Sequence[int]) -> tuple[int, ...]:
    return tuple(b - a for a, b in zip(sooner, later, strict=True))
