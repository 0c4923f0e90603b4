"""mosaicml-streaming: uncompressed MDS shards, its default shuffle (py1e), its own DataLoader."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from collating import collate
from numpy.typing import NDArray
from reader import GRID, SEED, Batch, Request


def _replace_torchvision() -> None:
    """streaming imports it for pictures, and that of PyPI is built for CUDA: beside a CPU's torch it
    fails."""
    for name, content in (("datasets", "VisionDataset"), ("transforms.functional", "to_tensor")):
        module = ModuleType(f"torchvision.{name}")
        setattr(module, content, object)
        sys.modules[module.__name__] = module


_replace_torchvision()
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


def write(codes: NDArray[np.uint16], folder: str) -> None:
    columns = {"id": "int", "codes": f"ndarray:uint16:{','.join(map(str, GRID))}"}
    with MDSWriter(out=folder, columns=columns) as writer:
        for i, clip in enumerate(codes):
            writer.write({"id": i, "codes": np.ascontiguousarray(clip)})


def open_reader(folder: str, request: Request) -> "StreamingReader":
    return StreamingReader(folder, request)


class StreamingReader:
    def __init__(self, folder: str, request: Request) -> None:
        if request.world_size == 1:
            clean_stale_shared_memory()
        dataset = StreamingDataset(
            local=folder, batch_size=request.batch, shuffle=True, shuffle_seed=SEED, num_canonical_nodes=1
        )
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
