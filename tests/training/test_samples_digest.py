import numpy as np
import pytest

from training.loading.batches import MicroBatch
from training.loading.samples_digest import SIZE, chained, digest_halves


def batch(*ids: tuple[str, ...]) -> list[MicroBatch]:
    return [
        MicroBatch(index, np.array(clip_ids, "S"), np.zeros(1, np.uint8))
        for index, clip_ids in enumerate(ids)
    ]


def of_step(parts: list[MicroBatch], *, world_size: int = 1, before: int = 0) -> int:
    halves = [digest_halves(parts[rank::world_size]) for rank in range(world_size)]
    return chained(before, [sum(half) for half in zip(*halves, strict=True)])


PARTS = batch(("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_who_reads_which_micro_batch_does_not_matter(world_size: int) -> None:
    assert of_step(PARTS, world_size=world_size) == of_step(PARTS)


@pytest.mark.parametrize(
    "other",
    [
        batch(("a", "b"), ("c", "d"), ("e", "f"), ("g", "i")),
        batch(("b", "a"), ("c", "d"), ("e", "f"), ("g", "h")),
        batch(("c", "d"), ("a", "b"), ("e", "f"), ("g", "h")),
        batch(("ab", ""), ("c", "d"), ("e", "f"), ("g", "h")),
    ],
)
def test_another_clip_or_another_place_of_one_shows(other: list[MicroBatch]) -> None:
    assert of_step(other) != of_step(PARTS)


def test_a_step_twice_is_not_a_step_once() -> None:
    once = of_step(PARTS)
    assert of_step(PARTS, before=once) != once


def test_it_survives_as_a_metric() -> None:
    digest = of_step(PARTS)
    assert 0 <= digest < SIZE
    assert int(float(digest)) == digest
