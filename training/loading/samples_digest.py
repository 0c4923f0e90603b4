"""Which clips a run has seen, in one number that every checkpoint and every logged line carries.

Each micro-batch has a digest of its place in the step and its clips' ids. Those of a step are added up, so
that no rank needs another's ids and the world size does not matter; the steps are chained, so that two runs
have the same number exactly if they saw the same clips in the same steps.
"""

import hashlib
from collections.abc import Iterable

from training.loading.batches import MicroBatch

HALF = 1 << 24
"""Digests travel as two halves: a float64 adds up those of 2^29 ranks without rounding."""
SIZE = HALF * HALF
"""48 bits: a float64, as metrics are, holds such a number exactly."""


def digest_halves(batch: Iterable[MicroBatch]) -> tuple[float, float]:
    """Of one rank's micro-batches of a step: what, added up over the ranks, `chained` takes."""
    total = sum(_digest(f"{part.index}", *part.clip_ids) for part in batch) % SIZE
    return float(total // HALF), float(total % HALF)


def chained(before: int, halves: Iterable[float]) -> int:
    """The digest of all steps up to one: `before` it, and the halves of it, added up over the ranks."""
    high, low = halves
    return _digest(f"{before}", f"{(int(high) * HALF + int(low)) % SIZE}")


def _digest(*words: str) -> int:
    hashed = hashlib.sha256("\0".join(words).encode())
    return int.from_bytes(hashed.digest()[:6], "big")
