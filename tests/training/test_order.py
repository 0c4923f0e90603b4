from collections import Counter
from itertools import pairwise

import pytest

from training.loading.order import Order, shuffled

SIZES = [4, 4, 3, 4, 1, 4, 2]


def order(seed: int = 0, window_groups: int = 3) -> Order:
    return Order(SIZES, key=(seed,), window_groups=window_groups)


def places(clips: Order, first: int, count: int) -> list[tuple[int, int]]:
    """Row group and row of neighbouring clips of the stream."""
    found = []
    for window, rows in clips.parts(first, count):
        laid = [(int(group), row) for group in window.groups for row in range(SIZES[group])]
        found += [laid[row] for row in rows]
    return found


@pytest.mark.parametrize("window_groups", [1, 3, 100])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_has_every_clip_once(window_groups: int, epoch: int) -> None:
    clips = order(window_groups=window_groups)
    size = clips.clips_per_epoch
    found = places(clips, epoch * size, size)
    assert sorted(found) == [(group, row) for group, rows in enumerate(SIZES) for row in range(rows)]


def test_any_part_of_the_stream_is_the_same_however_it_is_asked_for() -> None:
    whole = places(order(), 0, 70)
    for first, count in ((0, 1), (21, 3), (22, 30), (43, 27), (69, 1)):
        assert places(order(), first, count) == whole[first : first + count]


def test_epochs_and_seeds_differ_in_their_order() -> None:
    size = order().clips_per_epoch
    first = places(order(), 0, size)
    assert first != places(order(), size, size)
    assert first != places(order(seed=1), 0, size)


def test_rows_are_shuffled_across_the_groups_of_a_window() -> None:
    groups = [group for group, _ in places(order(window_groups=len(SIZES)), 0, sum(SIZES))]
    assert sum(a != b for a, b in pairwise(groups)) > len(SIZES)


def test_the_window_after_the_last_is_the_first_of_the_next_epoch() -> None:
    clips = order()
    last = clips.window(4, clips.windows_per_epoch - 1)
    assert (clips.after(last).epoch, clips.after(last).number) == (5, 0)


def test_a_permutation_is_pinned_for_good() -> None:
    """A run resumed with another numpy must meet the same clips."""
    assert shuffled(8, 0, 0).tolist() == [3, 2, 1, 4, 5, 7, 0, 6]
    assert sorted(shuffled(1000, 7).tolist()) == list(range(1000))


def test_a_permutation_puts_everything_everywhere() -> None:
    firsts = Counter(int(shuffled(4, seed)[0]) for seed in range(2000))
    assert all(400 < count < 600 for count in firsts.values())
