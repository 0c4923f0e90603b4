"""reelgpt's own loader: `training.loading.batches` on a shard set of the pipelines' own writer."""

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from reader import Batch, Request

from pipelines import shards
from pipelines.config import PackConfig
from pipelines.shards import Manifest, ShardSet, TableEntry
from training.configs.batches import BatchesConfig
from training.loading.batches import Batches
from training.loading.read_ahead import ReadAhead
from training.loading.shelf import Shelf

CLIPS_PER_SHARD = 65_536
MICRO_BATCHES = 4
"""Of a step: what up to so many ranks share."""
WINDOW_GROUPS = 128
"""Four times the default: as well shuffled as the peers are, to a hundredth."""


def write(codes: NDArray[np.uint16], folder: str) -> None:
    pack = PackConfig()
    entries = []
    for first in range(0, len(codes), CLIPS_PER_SHARD):
        table = _table(codes[first : first + CLIPS_PER_SHARD], first)
        path = f"shards/train-{first:08d}.parquet"
        rows = pack.rows_per_group(codes[0].nbytes)
        entries.append(shards.write_shard(folder, table, path=path, split="train", rows_per_group=rows))
    none = TableEntry(path="none", rows=0, bytes=0, sha256="")
    manifest = Manifest(
        format_version=shards.FORMAT_VERSION, kind="tokens", recipe_id="benchmark", fingerprint="benchmark",
        config={}, totals={}, shards=tuple(entries), sources=none, spans=none,
    )  # fmt: skip
    shards.seal(folder, manifest)


def open_reader(folder: str, request: Request) -> "OurReader":
    return OurReader(folder, request)


class OurReader:
    def __init__(self, folder: str, request: Request) -> None:
        shard_set = ShardSet.open(folder)
        shelf = Shelf(shard_set, tuple(shard_set.shards("train")))
        micro_batch = request.global_batch // MICRO_BATCHES if request.world_size > 1 or request.state else 0
        config = BatchesConfig(
            global_batch=request.global_batch,
            micro_batch=micro_batch or request.global_batch,
            window_groups=WINDOW_GROUPS,
        )
        self._batches = Batches(
            [shelf], [Fraction(1)], config, seed=0, rank=request.rank, world_size=request.world_size
        )
        self._begun = request.state or 0
        self._steps = range(self._begun + 1, shelf.num_clips // request.global_batch + 1)

    def __iter__(self) -> Iterator[Batch]:
        make = self._batches.micro_batches
        with closing(self._batches), ReadAhead(make, self._steps, depth=2) as ahead:
            for _, parts in ahead:
                ids = np.concatenate([part.ids for part in parts])
                codes = parts[0].clips if len(parts) == 1 else np.concatenate([p.clips for p in parts])
                yield ids.astype(np.int64), codes

    def state(self, num_batches: int) -> Any:
        return self._begun + num_batches


def _table(codes: NDArray[np.uint16], first: int) -> pa.Table:
    schema, count = shards.clip_schema("tokens"), len(codes)
    same = {
        "source_id": "source", "source": "source.mp4", "span_id": "span", "start_seconds": 0.0, "fps": 8.0,
        "num_frames": 13, "repeated_frames": 0, "grid": list(codes.shape[1:]),
    }  # fmt: skip
    columns: dict[str, list[Any]] = {name: [value] * count for name, value in same.items()}
    columns["clip_id"] = [f"{first + i:032d}" for i in range(count)]
    columns["codes"] = [clip.tobytes() for clip in codes]
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in schema
    ]
    return pa.table(arrays, schema=schema)
