"""Memory between the steps of a run."""

import ctypes
import resource

import pytest
import torch

from training.engine.kept_memory import LARGEST_FROM_HEAP, keep_freed_memory

BLOCKS, ROUNDS = 4, 10


def fill_blocks() -> None:
    """As a step does: some large tensors at once, then none."""
    for block in [torch.empty(LARGEST_FROM_HEAP // 8) for _ in range(BLOCKS)]:
        block.fill_(1.0)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_what_a_step_freed_is_not_fetched_from_the_system_again() -> None:
    keep_freed_memory()
    for _ in range(ROUNDS):  # until the heap has found its shape
        fill_blocks()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        fill_blocks()

    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages_filled = ROUNDS * BLOCKS * LARGEST_FROM_HEAP // 2 // resource.getpagesize()
    assert faults < pages_filled / 20
