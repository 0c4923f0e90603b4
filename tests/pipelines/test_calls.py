"""How units are dealt out: soon, whole, and balanced at the end."""

import random

import pytest

from infra.errors import ClusterError, ConfigError
from pipelines.building import calls
from pipelines.config import Resources


def test_every_unit_is_in_one_call_and_no_call_is_larger_than_allowed() -> None:
    rng = random.Random(0)
    for _ in range(300):
        num_units, workers, most = rng.randint(0, 3000), rng.randint(1, 70), rng.randint(1, 40)
        sizes = calls.sizes(num_units, workers=workers, most=most)
        assert sum(sizes) == num_units
        assert all(1 <= size <= most for size in sizes)


def test_the_first_calls_are_short_and_the_last_ones_end_together() -> None:
    sizes = calls.sizes(1000, workers=4, most=16)
    assert sizes[:4] == [1] * 4
    assert sizes[-4:] == [1] * 4
    assert max(sizes) == 16
    assert len(calls.sizes(100_000, workers=4, most=16)) < 100_000 / 15


def test_the_makespan_is_near_the_optimum_whatever_the_units_cost() -> None:
    rng = random.Random(1)
    for workers in (2, 3, 8):
        costs = [rng.choice((0.2, 1.0, 3.0)) for _ in range(40 * workers)]
        ends = [0.0] * workers
        start = 0
        for size in calls.sizes(len(costs), workers=workers, most=16):
            ends[ends.index(min(ends))] += sum(costs[start : start + size])
            start += size
        assert max(ends) < 1.06 * sum(costs) / workers


def test_gpus_that_are_not_there_are_refused_where_none_can_come() -> None:
    assert calls.num_gpus(Resources(), 3, may_grow=False) == 3
    assert calls.num_gpus(Resources(num_gpus=0), 3, may_grow=False) == 0
    assert calls.num_gpus(Resources(num_gpus=4), 3, may_grow=True) == 4
    with pytest.raises(ClusterError, match="--num-gpus 4 was given, and this machine has 3"):
        calls.num_gpus(Resources(num_gpus=4), 3, may_grow=False)


def test_tokenizers_share_gpus_or_take_a_core_each() -> None:
    assert calls.most_tokenizers(Resources(), gpus=0, cpus=6) == 6
    assert calls.most_tokenizers(Resources(num_tokenizers=2), gpus=0, cpus=6) == 2
    assert calls.most_tokenizers(Resources(), gpus=2, cpus=6) == 2
    assert calls.most_tokenizers(Resources(gpus_per_tokenizer=0.25), gpus=2, cpus=6) == 8
    with pytest.raises(ConfigError, match="min_tokenizers=3 is above num_tokenizers=2"):
        Resources(num_tokenizers=2, min_tokenizers=3)
