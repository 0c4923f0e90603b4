"""What every loader is asked for. Read by the peers' Pythons too: it imports nothing of ours.

A contender is a module with `write(codes, folder)`, which lays clips down as that library likes them, and
`open_reader(folder, request)`.

Shapes: N clips of the whole set, B clips of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

GRID = (4, 16, 16)
NUM_CODES = 1000
WINDOW_CLIPS = 2048
"""Clips that are shuffled among each other, in those that shuffle in a buffer: as many as in ours."""
SEED = 0

Batch = tuple[NDArray[np.integer[Any]], NDArray[np.uint16]]
"""Which clips, by the place at which they were written (B,), and their codes (B, t, h, w)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    global_batch: int
    """Clips a step, over all ranks."""
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    """Processes that read, in those that have such."""
    state: Any = None
    """Of a reader, from which to go on; None starts the epoch."""

    @property
    def batch(self) -> int:
        """Clips of one rank."""
        return self.global_batch // self.world_size


class Reader(Protocol):
    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch that are left, of this rank."""

    def state(self, num_batches: int) -> Any:
        """What going on from here needs, where this reader has given `num_batches`."""
