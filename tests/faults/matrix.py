"""A full matrix of cases, of which `make test` holds a seeded sample."""

import os
import random
from collections.abc import Iterable
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

SEED = os.environ.get("REELGPT_TEST_SEED", "1")


Case = TypeVar("Case", str, int)


def all_with_a_sample(cases: Iterable[Case], count: int) -> list[ParameterSet]:
    """Every case, those outside of a sample of `count` marked `exhaustive`."""
    ordered = sorted(cases)
    chosen = random.Random(SEED).sample(ordered, count)
    return [pytest.param(case, marks=() if case in chosen else (pytest.mark.exhaustive,)) for case in ordered]
