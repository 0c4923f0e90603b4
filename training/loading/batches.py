"""Shard sets to batches: what a step takes is arithmetic on (seed, step), whoever asks and whenever.

Step s takes its G clips from one global sequence of micro-batches (`sequence`), which is made of the shuffled
streams of every grid of every set (`streams`). So it depends neither on the world size nor on where a run was
interrupted, nor on how far ahead is read; and resuming at any step costs the same.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from training.configs.batches import BatchesConfig
from training.loading.sequence import MicroBatches, Shape, Stock
from training.loading.shelf import Clip, Shelf
from training.loading.streams import Stream


@dataclass(frozen=True, slots=True)
class MicroBatch:
    index: int
    """Among all micro-batches of its step, over all workers: with seed and step it seeds all chance in it."""
    ids: NDArray[np.bytes_]
    clips: Clip
    """Clips of one shape, one after the other."""

    @property
    def clip_ids(self) -> tuple[str, ...]:
        return tuple(clip_id.decode() for clip_id in self.ids.tolist())


class Batches:
    """The batches of a run, as one rank reads them; `close` ends its reading threads."""

    def __init__(
        self,
        shelves: Sequence[Shelf],
        shares: Sequence[Fraction],
        config: BatchesConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Of each shelf its share of the clips. Raises ConfigError where a batch does not divide into the
        workers, UsageError where remote row groups cannot be cached."""
        self._config = config
        self._rank = rank
        self._world_size = world_size
        config.require_shared_among(world_size)
        stocks = [Stock(shelf.clips_by_shape(), share) for shelf, share in zip(shelves, shares, strict=True)]
        self._sequence = MicroBatches(stocks, micro_batch=config.micro_batch, seed=seed)
        self._readers = ThreadPoolExecutor(config.reader_threads, thread_name_prefix="reader")
        self._streams: dict[tuple[int, Shape], Stream] = {}
        for number, shelf in enumerate(shelves):
            self._open_streams(number, shelf, seed)

    @property
    def clips_per_epoch(self) -> int:
        return self._sequence.clips_per_pass

    def epoch(self, step: int) -> float:
        """Epochs passed once `step` is done: all sets together, each by its weight, are as long as one."""
        return step * self._config.global_batch / self.clips_per_epoch

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's share of step 1, 2, ...; with the clips' ids."""
        indices = range(self._rank, self._config.num_micro_batches, self._world_size)
        return [self._read(step, index) for index in indices]

    def close(self) -> None:
        self._readers.shutdown(cancel_futures=True)

    def _open_streams(self, number: int, shelf: Shelf, seed: int) -> None:
        row_groups = shelf.row_groups()
        for nth, (shape, entries) in enumerate(shelf.by_shape().items()):
            self._streams[number, shape] = Stream(
                row_groups,
                entries,
                key=(seed, number, nth),
                window_groups=self._config.window_groups,
                readers=self._readers,
            )

    def _read(self, step: int, index: int) -> MicroBatch:
        shape, pieces = self._sequence.find((step - 1) * self._config.num_micro_batches + index)
        read = [self._streams[piece.stock, shape].read(piece.first, len(piece.rows)) for piece in pieces]
        if len(read) == 1:
            return MicroBatch(index, read[0].ids, read[0].arrays)
        places = np.argsort(np.concatenate([piece.rows for piece in pieces]))
        ids, arrays = (np.concatenate([getattr(part, name) for part in read]) for name in ("ids", "arrays"))
        return MicroBatch(index, ids[places], arrays[places])
