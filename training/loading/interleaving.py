"""Several streams as one: at every place, which stream's turn it is and how far that one has come.

Shares are exact. After any number of places each stream has had its share of them, to within two places a
level of a binary tree over the streams, and at the end of a pass exactly what it was to have. Inside blocks
of BLOCK places the turns are shuffled by the seed. Any place is found without walking to it.
"""

from collections.abc import Sequence

import numpy as np

from training.loading.order import Indices, shuffled

BLOCK = 64
"""Places whose turns are shuffled among each other: no share is off for longer."""


def apportion(places: int, counts: Sequence[int]) -> list[int]:
    """How many of the first `places` each stream has, of a pass in which it has `counts` of them all.

    Splits by halves, rounding down on the left: so no stream's number ever falls as `places` grows, which
    rounding all shares at once does not promise (Balinski and Young, 1982).
    """
    if len(counts) == 1:
        return [places]
    half = len(counts) // 2
    left, whole = sum(counts[:half]), sum(counts)
    on_left = places * left // whole if whole else 0
    return [*apportion(on_left, counts[:half]), *apportion(places - on_left, counts[half:])]


def turns(counts: Sequence[int], block: int, *key: int) -> tuple[Indices, Indices]:
    """Of each place in a block of a pass: whose turn it is, and how many turns that stream had before it."""
    start = block * BLOCK
    before = apportion(start, counts)
    after = apportion(min(start + BLOCK, sum(counts)), counts)
    taken = np.subtract(after, before)
    streams = np.repeat(np.arange(len(counts)), taken)[shuffled(int(taken.sum()), *key, block)]
    nth = np.empty_like(streams)
    for stream, first in enumerate(before):
        nth[streams == stream] = first + np.arange(taken[stream])
    return streams, nth
