"""Tiny shard sets for training, written by the real writer."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from infra import hashing
from model.bundle import save_bundle
from model.config import TokenizerConfig
from model.tokenizer import Tokenizer
from pipelines import shards
from pipelines.shards import Kind, Manifest, ShardEntry, ShardSet, Split, TableEntry
from tests.training import runs
from tests.training.faults import Bench
from tests.training.workers import Workers

ROWS_PER_GROUP = 4
TINY_TOKENIZER = TokenizerConfig(frame_size=16, base_channels=8, max_channels=8, num_heads=1, patch_size=4)


def write_shard_set(
    uri: str,
    kind: Kind,
    clips: dict[Split, list[np.ndarray]],
    *,
    tokenizer: str | None = None,
    suffix: str = "",
) -> ShardSet:
    """A sealed shard set of these clips, in two shards a split and shape. `suffix`: of its sources' names."""
    entries: list[ShardEntry] = []
    for split, arrays in clips.items():
        shapes = dict.fromkeys(array.shape for array in arrays)
        of_shapes = [[array for array in arrays if array.shape == shape] for shape in shapes]
        halves = [part for a in of_shapes for part in (a[: len(a) // 2], a[len(a) // 2 :])]
        for number, half in enumerate(half for half in halves if half):
            path = f"shards/{split}-{number:05d}.parquet"
            table = _table(kind, half, prefix=f"{split}-{number}{suffix}")
            entries.append(
                shards.write_shard(uri, table, path=path, split=split, rows_per_group=ROWS_PER_GROUP)
            )
    fingerprint = hashing.digest([entry.sha256 for entry in entries])
    facts: dict[str, object] = {}
    if tokenizer is not None:
        from model.bundle import read_bundle

        facts = {
            "tokenizer": tokenizer,
            "tokenizer_fingerprint": read_bundle(tokenizer).fingerprint,
            "num_codes": TINY_TOKENIZER.num_codes,
        }
    none = TableEntry(path="none.parquet", rows=0, bytes=0, sha256="")
    manifest = Manifest(
        format_version=shards.FORMAT_VERSION,
        kind=kind,
        recipe_id="test",
        fingerprint=fingerprint,
        config={},
        totals={"clips": sum(entry.rows for entry in entries)},
        shards=tuple(entries),
        sources=none,
        spans=none,
        **facts,  # type: ignore[arg-type]
    )
    shards.seal(uri, manifest)
    return ShardSet.open(uri)


def _table(kind: Kind, arrays: Iterable[np.ndarray], *, prefix: str) -> pa.Table:
    payload, shape = ("frames", "shape") if kind == "frames" else ("codes", "grid")
    rows = [
        {
            "clip_id": f"{prefix}-{i:03d}",
            "source_id": prefix,
            "source": f"{prefix}.mp4",
            "span_id": f"{prefix}-0",
            "start_seconds": float(i),
            "fps": 8.0,
            "num_frames": len(array),
            "repeated_frames": 0,
            "scores": [],
            payload: array.tobytes(),
            shape: list(array.shape),
        }
        for i, array in enumerate(arrays)
    ]
    return pa.Table.from_pylist(rows, schema=shards.clip_schema(kind))


def moving_squares(count: int, *, num_frames: int = 4, size: int = 24, seed: int = 0) -> list[np.ndarray]:
    """Clips (T, S, S, 3) uint8 of a bright square that moves over a dark ground."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        frames = np.full((num_frames, size, size, 3), rng.integers(0, 60, 3), np.uint8)
        x, y = rng.integers(0, size // 2, 2)
        colour = rng.integers(120, 255, 3)
        for t in range(num_frames):
            frames[t, y : y + size // 3, x + t : x + t + size // 3] = colour
        clips.append(frames)
    return clips


def drifting_codes(count: int, *, grid: tuple[int, int, int] = (4, 2, 2), seed: int = 0) -> list[np.ndarray]:
    """Clips (t, h, w) uint16 whose codes count up from frame to frame: there is something to learn."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 8, (count, 1, *grid[1:]))
    drift = np.arange(grid[0]).reshape(1, -1, 1, 1)
    return list(((first + drift) % 16).astype("<u2"))


@pytest.fixture
def connected() -> Iterator[None]:
    """Engines of this process are let go."""
    yield
    from training.engine.connection import disconnect

    disconnect()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a training machine with neither Ray nor MLflow."""
    return runs.bare_environment(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def frame_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    uri = str(tmp_path_factory.mktemp("data") / "frames")
    return write_shard_set(
        uri, "frames", {"train": moving_squares(23), "validation": moving_squares(5, seed=1)}
    )


@pytest.fixture(scope="session")
def tokenizer_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    uri = str(tmp_path_factory.mktemp("tokenizer") / "model")
    return save_bundle(
        uri, Tokenizer(TINY_TOKENIZER), lineage={"run": {"recipe": "none"}}, card="A test's."
    ).uri


@pytest.fixture(scope="session")
def token_set(tmp_path_factory: pytest.TempPathFactory, tokenizer_bundle: str) -> ShardSet:
    uri = str(tmp_path_factory.mktemp("data") / "tokens")
    clips: dict[Split, list[np.ndarray]] = {
        "train": drifting_codes(23),
        "validation": drifting_codes(5, seed=1),
    }
    return write_shard_set(uri, "tokens", clips, tokenizer=tokenizer_bundle)


@pytest.fixture(scope="session")
def two_grid_set(tmp_path_factory: pytest.TempPathFactory, tokenizer_bundle: str) -> ShardSet:
    """Codes of the same tokenizer as `token_set`: of clips and of stills."""
    uri = str(tmp_path_factory.mktemp("data") / "two-grids")
    train = drifting_codes(13, seed=2) + drifting_codes(10, grid=(1, 2, 2), seed=3)
    clips: dict[Split, list[np.ndarray]] = {"train": train, "validation": drifting_codes(3, seed=4)}
    return write_shard_set(uri, "tokens", clips, tokenizer=tokenizer_bundle, suffix="-of-two-grids")


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    folder = tmp_path_factory.mktemp("workers")
    with Workers(folder, runs.bare_environment(folder / "site")) as found:
        yield found


@pytest.fixture(scope="session")
def bench(workers: Workers, token_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(workers, token_set, tmp_path_factory.mktemp("bench"))
