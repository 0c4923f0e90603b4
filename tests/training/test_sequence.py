import random
from collections import Counter
from fractions import Fraction

import pytest

from training.loading.interleaving import BLOCK, apportion, turns
from training.loading.sequence import MicroBatches, Shape, Stock

CLIPS, STILLS, WIDE = (8, 8, 8), (1, 8, 8), (8, 8, 16)
TAKEN = tuple[int, Shape, int]
"""Set, grid, and which clip of their stream."""


def taken(sequence: MicroBatches, numbers: range) -> list[list[TAKEN]]:
    """The clips of each micro-batch, in their order in it."""
    found = []
    for number in numbers:
        shape, pieces = sequence.find(number)
        rows: dict[int, TAKEN] = {}
        for piece in pieces:
            rows |= {int(row): (piece.stock, shape, piece.first + i) for i, row in enumerate(piece.rows)}
        found.append([rows[row] for row in sorted(rows)])
    return found


def random_stocks(chance: random.Random) -> list[Stock]:
    weights = [chance.randint(1, 9) for _ in range(chance.randint(1, 4))]
    grids = [chance.sample((CLIPS, STILLS, WIDE), chance.randint(1, 3)) for _ in weights]
    return [
        Stock({shape: chance.randint(1, 90) for shape in shapes}, Fraction(weight, sum(weights)))
        for weight, shapes in zip(weights, grids, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_no_clip_of_a_stream_is_left_out_or_taken_twice(seed: int) -> None:
    chance = random.Random(seed)
    stocks, size = random_stocks(chance), chance.choice((1, 2, 3, 8))
    batches = taken(MicroBatches(stocks, micro_batch=size, seed=seed), range(300))
    assert all(len(batch) == size for batch in batches)
    clips = [clip for batch in batches for clip in batch]
    assert len(set(clips)) == len(clips)
    for stream in {clip[:2] for clip in clips}:
        numbers = [number for *owner, number in clips if tuple(owner) == stream]
        assert max(numbers) - len(numbers) < BLOCK  # only what is in turn now is still open
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("seed", range(20))
def test_every_set_gives_its_share_of_any_long_run(seed: int) -> None:
    chance = random.Random(seed)
    stocks = random_stocks(chance)
    sequence = MicroBatches(stocks, micro_batch=4, seed=seed)
    counts: Counter[int] = Counter()
    for number, batch in enumerate(taken(sequence, range(1500)), start=1):
        counts.update(stock for stock, _, _ in batch)
        for index, stock in enumerate(stocks):
            assert abs(counts[index] - stock.share * 4 * number) < 2 * BLOCK


def test_seven_and_three_in_ten_are_exact_to_a_clip_after_every_pass() -> None:
    stocks = [Stock({CLIPS: 70}, Fraction("0.7")), Stock({CLIPS: 930}, Fraction("0.3"))]
    batches = taken(MicroBatches(stocks, micro_batch=8, seed=0), range(125 * 20))
    for num_passes in range(1, 21):
        clips = [stock for batch in batches[: 125 * num_passes] for stock, _, _ in batch]
        assert Counter(clips) == {0: 700 * num_passes, 1: 300 * num_passes}


@pytest.mark.parametrize("size", [1, 3, 8])
def test_an_epoch_takes_every_clip_once_but_for_less_than_a_micro_batch_of_each_grid(size: int) -> None:
    clips = {CLIPS: 100, STILLS: 37, WIDE: 5}
    sequence = MicroBatches([Stock(clips, Fraction(1))], micro_batch=size, seed=3)
    number = 0
    seen: Counter[Shape] = Counter()
    for epoch in range(1, 12):
        number_then = sum(epoch * count // size for count in clips.values())
        for batch in taken(sequence, range(number, number_then)):
            seen.update(shape for _, shape, _ in batch)
        number = number_then
        assert all(0 <= epoch * count - seen[shape] < size for shape, count in clips.items())


def test_grids_are_spread_over_the_epoch() -> None:
    stock = Stock({CLIPS: 900, STILLS: 100}, Fraction(1))
    sequence = MicroBatches([stock], micro_batch=1, seed=0)
    for first in range(0, 960, 2 * BLOCK):
        grids = Counter(
            shape for batch in taken(sequence, range(first, first + 2 * BLOCK)) for _, shape, _ in batch
        )
        assert 8 <= grids[STILLS] <= 18


def test_sets_without_weights_are_one_set() -> None:
    stocks = [Stock({CLIPS: 30}, Fraction(3, 10)), Stock({CLIPS: 70}, Fraction(7, 10))]
    sequence = MicroBatches(stocks, micro_batch=5, seed=0)
    epoch = [clip for batch in taken(sequence, range(20)) for clip in batch]
    assert sorted(epoch) == [(0, CLIPS, i) for i in range(30)] + [(1, CLIPS, i) for i in range(70)]


def test_the_same_micro_batch_is_found_without_those_before_it() -> None:
    stocks = [Stock({CLIPS: 50, STILLS: 9}, Fraction("0.25")), Stock({CLIPS: 7}, Fraction("0.75"))]
    walked = taken(MicroBatches(stocks, micro_batch=3, seed=1), range(400))
    for number in (399, 17, 200):
        assert taken(MicroBatches(stocks, micro_batch=3, seed=1), range(number, number + 1)) == [
            walked[number]
        ]


def test_another_seed_takes_turns_otherwise() -> None:
    stocks = [Stock({CLIPS: 50}, Fraction("0.5")), Stock({CLIPS: 50}, Fraction("0.5"))]
    first, second = (taken(MicroBatches(stocks, micro_batch=4, seed=seed), range(9)) for seed in (0, 1))
    assert first != second


def test_a_stream_far_rarer_than_its_pass_is_found() -> None:
    stocks = [Stock({CLIPS: 10**7}, Fraction(10**6 - 1, 10**6)), Stock({STILLS: 3}, Fraction(1, 10**6))]
    sequence = MicroBatches(stocks, micro_batch=8, seed=0)
    clips = [clip for batch in taken(sequence, range(10**9, 10**9 + 50)) for clip in batch]
    assert len(set(clips)) == len(clips) == 400


def test_no_share_ever_shrinks() -> None:
    counts = [1, 40, 3, 0, 17]
    before = apportion(0, counts)
    for places in range(1, sum(counts) + 1):
        now = apportion(places, counts)
        assert sum(now) == places
        assert all(a <= b for a, b in zip(before, now, strict=True))
        before = now
    assert before == counts


def test_turns_are_pinned_for_good() -> None:
    streams, nth = turns((3, 2), 0, 7)
    assert streams.tolist() == TURNS
    assert nth.tolist() == [TURNS[:i].count(stream) for i, stream in enumerate(TURNS)]


TURNS = [1, 0, 0, 0, 1]
