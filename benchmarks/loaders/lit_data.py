"""litdata: chunks of 64 MB, its default; clips are shuffled within a chunk, and chunks among each other."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from collating import collate
from litdata import StreamingDataLoader, StreamingDataset, optimize
from numpy.typing import NDArray
from reader import SEED, Batch, Request


def write(codes: NDArray[np.uint16], folder: str) -> None:
    optimize(partial(_sample, codes), list(range(len(codes))), folder, chunk_bytes="64MB", num_workers=1)


def _sample(codes: NDArray[np.uint16], i: int) -> dict[str, Any]:
    return {"id": i, "codes": np.ascontiguousarray(codes[i])}


def open_reader(folder: str, request: Request) -> "LitReader":
    return LitReader(folder, request)


class LitReader:
    def __init__(self, folder: str, request: Request) -> None:
        dataset = StreamingDataset(folder, shuffle=True, seed=SEED, drop_last=True)
        self._loader = StreamingDataLoader(
            dataset, batch_size=request.batch, num_workers=request.workers, collate_fn=collate
        )
        if request.state is not None:
            self._loader.load_state_dict(request.state)

    def __iter__(self) -> Iterator[Batch]:
        for ids, codes in self._loader:
            yield ids.numpy(), codes.numpy()

    def state(self, num_batches: int) -> Any:  # noqa: ARG002 - it has counted
        return self._loader.state_dict()
