"""The index finds what comparing every pair finds."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.selection import near_hashes
from pipelines.selection.near_hashes import leaders


def crowded(seed: int, count: int) -> NDArray[np.uint64]:
    """Hashes around a few centres, from near to far."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, (count // 15, 3), dtype=np.uint64)
    flips = rng.random((count, 192)) < rng.uniform(0, 0.08, (count, 1))
    return centres[rng.integers(0, len(centres), count)] ^ np.packbits(flips, axis=1).view(np.uint64)


def one_by_one(hashes: NDArray[np.uint64], bits: int, num_standing: int) -> list[int]:
    found: list[int] = []
    for number, one in enumerate(hashes):
        stays = [n for n, leader in enumerate(found) if leader == n]
        near = [n for n in stays if np.bitwise_count(hashes[n] ^ one).sum() <= bits]
        found.append(near[0] if near and number >= num_standing else number)
    return found


@pytest.mark.parametrize("bits", [0, 1, 6, 12, 24, 48])
@pytest.mark.parametrize("num_standing", [0, 40])
def test_the_first_that_is_near_is_found_as_by_comparing_all(
    bits: int, num_standing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = crowded(seed=bits, count=250)
    expected = one_by_one(hashes, bits, num_standing)
    assert len(set(expected)) < 250
    for block, pairs in ((1024, 1 << 20), (16, 50)):
        monkeypatch.setattr(near_hashes, "BLOCK", block)
        monkeypatch.setattr(near_hashes, "PAIRS", pairs)
        assert leaders(hashes, bits, num_standing).tolist() == expected


def test_nothing_that_stays_is_near_to_another_and_all_that_goes_is_near_to_its_leader() -> None:
    hashes = crowded(seed=7, count=3000)
    found = leaders(hashes, 12)
    staying = np.flatnonzero(found == np.arange(3000))
    distances = np.bitwise_count(hashes[staying, None] ^ hashes[None, staying]).sum(axis=-1)
    np.fill_diagonal(distances, 192)
    assert distances.min() > 12
    assert np.bitwise_count(hashes ^ hashes[found]).sum(axis=-1).max() <= 12
    assert (found[found] == found).all()
    assert (found <= np.arange(3000)).all()


def test_no_hashes_give_no_leaders() -> None:
    assert leaders(np.zeros((0, 3), np.uint64), 12).tolist() == []
