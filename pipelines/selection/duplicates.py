"""Which clips show what another one shows already: the same pixels, or pictures that look alike.

Decided over a whole set, when it is packed. Of equal clips the one with the lowest id stays; of clips that
look alike, one after the other in the order of their ids, those that no earlier one that stays is near to.
Clips that are sealed stay before all others. Neither the order of rows and files nor the cluster matters.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import DuplicateConfig
from pipelines.selection.near_hashes import HASH_BITS, leaders

EXACT = "duplicate"
NEAR = "near_duplicate"
COLUMNS = ("clip_id", "num_frames", "content_hash", "perceptual_hash")
CONTENT_BITS = 128
"""Of each SHA-256 that are compared: no two contents have them in common by chance."""

Numbers = NDArray[np.int64]


class Copy(NamedTuple):
    """What a clip is that shows nothing new."""

    reason: str
    """EXACT or NEAR."""
    of: str
    """Id of the clip that stays."""


class Candidates:
    """The clips of a set that may be kept: some 60 bytes each, 30 more where near ones are looked for."""

    def __init__(self, config: DuplicateConfig) -> None:
        self._config = config
        self._ids: list[pa.ChunkedArray] = [pa.chunked_array([], pa.string())]
        self._flags: list[NDArray[Any]] = []
        self._contents: list[NDArray[Any]] = []
        self._pictures: list[NDArray[Any]] = []

    def add(self, clips: pa.Table, *, stand: bool) -> None:
        """clips: COLUMNS. `stand`: they are sealed already, and stay. What has no hash is no candidate."""
        known = clips.column("content_hash").is_valid()
        if not self._config.is_active or not clips.num_rows or not known.to_numpy().any():
            return
        clips = clips.filter(known)
        self._ids.append(clips.column("clip_id"))
        frames = clips.column("num_frames").to_numpy()
        self._flags.append(np.stack([np.full_like(frames, not stand), frames], axis=1))
        self._contents.append(_words(clips.column("content_hash"), CONTENT_BITS))
        if self._config.near_bits is not None:
            self._pictures.append(_words(clips.column("perceptual_hash"), HASH_BITS))

    def copies(self) -> dict[str, Copy]:
        """Clip id to what it is a copy of."""
        if not self._flags:
            return {}
        config = self._config
        ids = pa.chunked_array([chunk for some in self._ids for chunk in some.chunks])
        is_new, num_frames = np.concatenate(self._flags).T
        found = _exact(ids, is_new, np.concatenate(self._contents)) if config.exact else {}
        if config.near_bits is None:
            return found
        pictures = np.concatenate(self._pictures)
        stays = np.flatnonzero([clip_id not in found for clip_id in ids.to_pylist()])
        for count in np.unique(num_frames):  # a picture is no copy of a video
            alike = stays[num_frames[stays] == count]
            found |= _near(ids.take(pa.array(alike)), is_new[alike], pictures[alike], config.near_bits)
        return found


def counts_more(now: DuplicateConfig, before: DuplicateConfig) -> bool:
    """Whether `now` takes for copies all that `before` took for them."""
    near = [-1 if config.near_bits is None else config.near_bits for config in (now, before)]
    return near[0] >= near[1] and (now.exact or not before.exact or now.near_bits is not None)


def _exact(ids: pa.ChunkedArray, is_new: NDArray[Any], contents: NDArray[Any]) -> dict[str, Copy]:
    return {
        clip_id: Copy(EXACT, min(group)[1])
        for group in _equal(ids, is_new, contents)
        for new, clip_id in group
        if new and clip_id != min(group)[1]
    }


def _equal(
    ids: pa.ChunkedArray, is_new: NDArray[Any], contents: NDArray[Any]
) -> Iterator[list[tuple[int, str]]]:
    """The clips of each content that more than one has, those that stand first."""
    order = np.lexsort(contents.T)
    repeats = np.zeros(len(order) + 1, np.bool_)  # whether each has the content of the one before it
    repeats[1:-1] = (contents[order[1:]] == contents[order[:-1]]).all(axis=1)
    several = np.flatnonzero(repeats[:-1] | repeats[1:])
    starts = np.flatnonzero(~repeats[several])
    members = order[several]
    named = list(zip(is_new[members].tolist(), ids.take(pa.array(members)).to_pylist(), strict=True))
    for start, stop in pairwise([*starts, len(named)]):
        yield named[start:stop]


def _near(ids: pa.ChunkedArray, is_new: NDArray[Any], pictures: NDArray[Any], bits: int) -> dict[str, Copy]:
    table = pa.table({"new": is_new, "id": ids, "at": np.arange(len(is_new))})
    table = table.sort_by([("new", "ascending"), ("id", "ascending")])
    leader = leaders(pictures[table.column("at").to_numpy()], bits, num_standing=int((is_new == 0).sum()))
    copied = np.flatnonzero(leader != np.arange(len(leader)))
    pairs = (table.column("id").take(pa.array(some)).to_pylist() for some in (copied, leader[copied]))
    return {clip_id: Copy(NEAR, of) for clip_id, of in zip(*pairs, strict=True)}


def _words(hashes: pa.ChunkedArray, bits: int) -> NDArray[np.uint64]:
    """(N, bits / 64) of the first digits of hexadecimal strings."""
    digits = "".join(text[: bits // 4] for text in hashes.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), np.uint64).reshape(-1, bits // 64)
