"""Hugging Face datasets, by index: an Arrow table in memory-mapped files, and a permutation of all clips."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, load_from_disk
from datasets.table import InMemoryTable
from numpy.typing import NDArray
from reader import GRID, SEED, Batch, Request


def write(codes: NDArray[np.uint16], folder: str) -> None:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes[0].size)
    table = pa.table({"id": pa.array(np.arange(len(codes))), "codes": flat})
    Dataset(InMemoryTable(table)).save_to_disk(folder)


def open_reader(folder: str, request: Request) -> "TableReader":
    return TableReader(folder, request)


class TableReader:
    """Its users skip batches of the sampler, as Hugging Face's Trainer does: nothing is read for that."""

    def __init__(self, folder: str, request: Request) -> None:
        dataset = load_from_disk(folder).with_format("numpy")
        places = np.random.default_rng(SEED).permutation(len(dataset))
        self._begun = request.state or 0
        steps = range(self._begun, len(dataset) // request.global_batch)
        first = request.rank * request.batch
        mine = [places[s * request.global_batch + first :][: request.batch].tolist() for s in steps]
        self._loader = torch.utils.data.DataLoader(
            dataset, sampler=mine, batch_size=None, num_workers=request.workers, collate_fn=_tensors
        )

    def __iter__(self) -> Iterator[Batch]:
        for ids, codes in self._loader:
            yield ids.numpy(), codes.numpy()

    def state(self, num_batches: int) -> Any:
        return self._begun + num_batches


def _tensors(rows: dict[str, NDArray[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows["id"]), torch.from_numpy(rows["codes"].reshape(-1, *GRID))
