"""webdataset: tar files of 256 clips in a shuffled order, clips shuffled in a buffer. It keeps no state:
going on means reading up to there."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from collating import collate
from numpy.typing import NDArray
from reader import GRID, SEED, WINDOW_CLIPS, Batch, Request

CLIPS_PER_FILE = 256


def write(codes: NDArray[np.uint16], folder: str) -> None:
    Path(folder).mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=CLIPS_PER_FILE, verbose=0) as writer:
        for i, clip in enumerate(codes):
            writer.write({"__key__": f"{i:08d}", "codes.bin": clip.tobytes()})


def open_reader(folder: str, request: Request) -> "WebReader":
    return WebReader(folder, request)


class WebReader:
    def __init__(self, folder: str, request: Request) -> None:
        files = sorted(map(str, Path(folder).glob("*.tar")))
        dataset = (
            webdataset.WebDataset(
                files, shardshuffle=len(files), detshuffle=True, seed=SEED, empty_check=False,
                nodesplitter=webdataset.split_by_node,
            )
            .compose(webdataset.detshuffle(bufsize=WINDOW_CLIPS, initial=WINDOW_CLIPS, seed=SEED))
            .map(_decoded)
            .batched(request.batch, collation_fn=collate)
        )  # fmt: skip
        self._loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=request.workers)
        self._skipped = request.state or 0

    def __iter__(self) -> Iterator[Batch]:
        for ids, codes in islice(self._loader, self._skipped, None):
            yield ids.numpy(), codes.numpy()

    def state(self, num_batches: int) -> Any:
        return self._skipped + num_batches


def _decoded(sample: dict[str, Any]) -> dict[str, Any]:
    codes = np.frombuffer(sample["codes.bin"], np.uint16).reshape(GRID)
    return {"id": int(sample["__key__"]), "codes": codes}
