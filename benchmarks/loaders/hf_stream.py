"""Hugging Face datasets, as a stream: parts of 256 clips in a shuffled order, clips shuffled in a buffer. Its
state leaves out what is in the buffer, which is lost."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import load_from_disk
from datasets.distributed import split_dataset_by_node
from hf_table import write
from reader import GRID, SEED, WINDOW_CLIPS, Batch, Request

__all__ = ["open_reader", "write"]
CLIPS_PER_PART = 256


def open_reader(folder: str, request: Request) -> "StreamReader":
    return StreamReader(folder, request)


class StreamReader:
    def __init__(self, folder: str, request: Request) -> None:
        table = load_from_disk(folder).with_format("numpy")
        stream = table.to_iterable_dataset(num_shards=len(table) // CLIPS_PER_PART)
        stream = stream.shuffle(seed=SEED, buffer_size=WINDOW_CLIPS)
        stream = split_dataset_by_node(stream, request.rank, request.world_size)
        if request.state is not None:
            stream.load_state_dict(request.state)
        self._stream = stream
        self._loader = torch.utils.data.DataLoader(
            stream, batch_size=request.batch, num_workers=request.workers, collate_fn=_collate
        )

    def __iter__(self) -> Iterator[Batch]:
        for ids, codes in self._loader:
            yield ids.numpy(), codes.numpy()

    def state(self, num_batches: int) -> Any:  # noqa: ARG002 - it has counted
        return self._stream.state_dict()


def _collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([int(sample["id"]) for sample in samples])
    return ids, torch.from_numpy(np.stack([s["codes"] for s in samples]).reshape(-1, *GRID))
