"""Hashes that are near to an earlier one, among any number of them, without comparing all with all.

Two hashes that differ in at most `bits` bits agree in at least one of `bits` + 1 bands (the pigeonhole
principle), so that only those with a band in common are compared. What stays is in an index that grows by
merging runs of like size. Which hashes stay depends on their order alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Words = NDArray[np.uint64]
"""(N, 3): 192 bits each; or (N,)."""

HASH_BITS = 192
BLOCK = 1024
"""Hashes that are compared among each other at a time, all with all."""
PAIRS = 1 << 20
"""Pairs that are compared at a time."""
BAND_SHIFT = np.uint64(57)
"""Where the number of its band stands in a key; below it, what the band holds, mixed."""
MIXER = np.uint64(0x9E3779B97F4A7C15)


def leaders(hashes: Words, bits: int, num_standing: int = 0) -> Numbers:
    """Of each hash the number of the first that stays and differs in at most `bits` bits; its own where it
    stays, as the first `num_standing` do in any case."""
    found = np.arange(len(hashes))
    index = _Index(max(3, bits + 1))
    for start in range(0, len(hashes), BLOCK):
        block, own = hashes[start : start + BLOCK], found[start : start + BLOCK]
        free = own >= num_standing
        own[free] = np.minimum(own[free], index.nearest(block[free], bits))
        _settle(own, block, start, bits, num_standing)
        stays = own == np.arange(start, start + len(own))
        index.add(own[stays], block[stays])
    return found


def _settle(own: Numbers, block: Words, start: int, bits: int, num_standing: int) -> None:
    """Among those of a block that no earlier block keeps out, in their order."""
    staying = np.flatnonzero(own == np.arange(start, start + len(own)))
    near = _near_all(block[staying], bits)
    free = start + staying >= num_standing
    for row in np.flatnonzero(near.sum(axis=1) > 1):
        if own[staying[row]] == start + staying[row]:
            others = np.flatnonzero(near[row] & free)
            own[staying[others[others > row]]] = start + staying[row]
            free[others] = False


def _near_all(hashes: Words, bits: int) -> NDArray[np.bool_]:
    """(N, N): which are near to which."""
    first = hashes[:, 0]  # a third of the bits tells most pairs apart
    near: NDArray[np.bool_] = np.bitwise_count(first[:, None] ^ first[None]) <= bits
    rows, columns = np.nonzero(near)
    near[rows, columns] = _distance(hashes[rows], hashes[columns]) <= bits
    return near


def _distance(some: Words, others: Words) -> NDArray[np.int64]:
    """Bits that differ."""
    distances: NDArray[np.int64] = np.bitwise_count(some ^ others).sum(axis=-1, dtype=np.int64)
    return distances


@dataclass(frozen=True, slots=True)
class _Run:
    numbers: Numbers
    """(M,)"""
    hashes: Words
    """(M, 3)"""
    keys: Words
    """(M * bands,): of every band of every hash, sorted."""
    places: Numbers
    """(M * bands,): whose key each is."""


class _Index:
    def __init__(self, num_bands: int) -> None:
        self._edges = np.linspace(0, HASH_BITS, num_bands + 1).astype(int)
        self._runs: list[_Run] = []

    def add(self, numbers: Numbers, hashes: Words) -> None:
        if not len(numbers):
            return
        keys = self._keys(hashes)
        run = _sorted_run(numbers, hashes, keys, np.tile(np.arange(len(hashes)), len(self._edges) - 1))
        while self._runs and len(self._runs[-1].numbers) <= len(run.numbers):
            run = _merged(self._runs.pop(), run)
        self._runs.append(run)

    def nearest(self, hashes: Words, bits: int) -> Numbers:
        """The lowest number within `bits` bits of each hash; where there is none, more than any."""
        found = np.full(len(hashes), np.iinfo(np.int64).max)
        keys = self._keys(hashes)
        order = np.argsort(keys)  # neighbours are looked up one after the other
        wanted, owners = keys[order], order % max(1, len(hashes))
        for run in self._runs:
            for which, places in _pairs(run.keys, wanted):
                mine, theirs = owners[which], run.places[places]
                near = _distance(hashes[mine], run.hashes[theirs]) <= bits
                np.minimum.at(found, mine[near], run.numbers[theirs[near]])
        return found

    def _keys(self, hashes: Words) -> Words:
        """(bands * N,)"""
        flags = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8), axis=1)
        keys = np.zeros((len(self._edges) - 1, len(hashes)), np.uint64)
        for band, (low, high) in enumerate(zip(self._edges[:-1], self._edges[1:], strict=True)):
            padded = np.zeros((len(hashes), 64), np.uint8)
            padded[:, : high - low] = flags[:, low:high]
            content = np.packbits(padded, axis=1).view(np.uint64)[:, 0]
            keys[band] = (content * MIXER >> (np.uint64(64) - BAND_SHIFT)) | np.uint64(band) << BAND_SHIFT
        return keys.ravel()


def _merged(one: _Run, other: _Run) -> _Run:
    return _sorted_run(
        np.concatenate([one.numbers, other.numbers]),
        np.concatenate([one.hashes, other.hashes]),
        np.concatenate([one.keys, other.keys]),
        np.concatenate([one.places, other.places + len(one.numbers)]),
    )


def _sorted_run(numbers: Numbers, hashes: Words, keys: Words, places: Numbers) -> _Run:
    order = np.argsort(keys, kind="stable")
    return _Run(numbers, hashes, keys[order], places[order])


def _pairs(keys: Words, wanted: Words) -> Iterator[tuple[Numbers, Numbers]]:
    """Numbers of wanted keys with the places of equal ones among sorted `keys`, some pairs at a time."""
    first = np.searchsorted(keys, wanted, "left")
    counts = np.searchsorted(keys, wanted, "right") - first
    found = np.flatnonzero(counts)
    first, counts = first[found], counts[found]
    ends = np.cumsum(counts)
    start = 0
    while start < len(found):
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS, "right")))
        some = counts[start:stop]
        which = np.repeat(np.arange(start, stop), some)
        within = np.arange(len(which)) - np.repeat(ends[start:stop] - some - before, some)
        yield found[which], first[which] + within
        start = stop
