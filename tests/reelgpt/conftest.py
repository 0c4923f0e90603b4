"""Small real things to work on: a video file, an untrained tokenizer, and an untrained GPT over its codes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from infra import configs
from pipelines.config import FilterConfig
from pipelines.shards import TableEntry
from pipelines.tables import write_table
from pipelines.video_writer import write_video

FPS = 8.0
SIZE = 32


def moving_square(num_frames: int, size: int = SIZE) -> NDArray[np.uint8]:
    """Frames (T, size, size, 3) of a bright square that walks over a shaded ground."""
    frames = np.zeros((num_frames, size, size, 3), np.uint8)
    frames[..., 1] = np.linspace(40, 120, size, dtype=np.uint8)
    for i in range(num_frames):
        frames[i, 8:20, (i * 2) % (size - 12) :][:, :12] = (230, 90, 40)
    return frames


@pytest.fixture
def video(tmp_path: Path) -> str:
    """Two seconds, 16 frames."""
    path = str(tmp_path / "square.mp4")
    write_video(path, moving_square(16), fps=FPS)
    return path


@pytest.fixture(scope="session")
def tokenizer_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch

    from model.bundle import save_bundle
    from model.config import TokenizerConfig
    from model.tokenizer import Tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = TokenizerConfig(levels=(4, 4, 4), frame_size=SIZE, base_channels=8, num_heads=1)
    path = str(tmp_path_factory.mktemp("bundles") / "tokenizer")
    save_bundle(path, Tokenizer(config), lineage={}, card="an untrained tokenizer")
    return path


@pytest.fixture(scope="session")
def gpt_bundle(tokenizer_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch

    from model.bundle import save_bundle
    from model.config import GPTConfig
    from model.gpt import GPT
    from model.tasks import sequence_length
    from model.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary(num_codes=64)
    config = GPTConfig(
        vocabulary_size=vocabulary.size,
        context_tokens=sequence_length((6, SIZE // 8, SIZE // 8)),
        model_dim=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        hidden_dim=32,
    )
    path = str(tmp_path_factory.mktemp("bundles") / "gpt")
    lineage = {"config": {"objective": {"prefix_frames": 2}}}
    save_bundle(
        path,
        GPT(config),
        lineage=lineage,
        card="an untrained GPT",
        vocabulary=vocabulary,
        tasks=["continue"],
        tokenizer_bundle=tokenizer_bundle,
    )
    return path


@pytest.fixture
def frame_set(tmp_path: Path) -> str:
    """Three clips of two sources, one held out; a third source could not be decoded."""
    from pipelines import records, shards
    from pipelines.spans import SOURCE_SCHEMA

    out = str(tmp_path / "frames")
    names = {"a": "walk.mp4", "b": "held-out.mp4", "c": "<i>broken</i>.mp4"}
    clips = {
        split: pa.Table.from_pylist(rows, shards.clip_schema("frames"))
        for split, rows in _clip_rows().items()
    }
    entries = tuple(
        shards.write_shard(
            out,
            table,
            path=f"shards/{split}-00000.parquet",
            split=split,
            rows_per_group=2,  # type: ignore[arg-type]
        )
        for split, table in clips.items()
    )
    sources = [
        {
            "source_id": id,
            "name": name,
            "uri": f"/v/{name}",
            "size": 9,
            "modified": "1",
            "duration_seconds": 2.0,
        }
        for id, name in names.items()
    ]
    split = pa.array(["train", "validation", "train"])
    source_table = pa.Table.from_pylist(sources, SOURCE_SCHEMA).append_column("split", split)
    spans = pa.Table.from_pylist([_span(id, names[id]) for id in names], pa.schema(records.OUTCOME_FIELDS))
    manifest = shards.Manifest(
        format_version=shards.FORMAT_VERSION,
        kind="frames",
        recipe_id="recipe",
        fingerprint="fingerprint",
        config={"rows": {}, "packing": {"filters": configs.to_dict(FilterConfig())}},
        totals={
            "sources": 3,
            "hours": 6 / 3600,
            "spans": {"failed": 1, "ok": 2},
            "clips": {split: table.num_rows for split, table in clips.items()},
        },
        shards=entries,
        sources=_entry(out, shards.SOURCES, source_table),
        spans=_entry(out, shards.SPANS, spans),
    )
    shards.seal(out, manifest)
    return out


def _clip_rows() -> dict[str, list[dict[str, Any]]]:
    return {
        "train": [_clip("a", 0), _clip("a", 1)],
        "validation": [_clip("b", 0)],
    }


def _clip(source_id: str, number: int) -> dict[str, Any]:
    frames = moving_square(8)
    return {
        "clip_id": f"{source_id}/00000/{number:04d}",
        "source_id": source_id,
        "source": source_id,
        "span_id": f"{source_id}/00000",
        "start_seconds": float(number),
        "fps": FPS,
        "num_frames": len(frames),
        "repeated_frames": 0,
        "shape": list(frames.shape),
        "frames": frames.tobytes(),
    }


def _span(source_id: str, name: str) -> dict[str, Any]:
    failed = source_id == "c"
    return {
        "span_id": f"{source_id}/00000",
        "source_id": source_id,
        "source": name,
        "start_seconds": 0.0,
        "outcome": "failed" if failed else "ok",
        "error_class": "truncated" if failed else None,
        "error": "the file was cut off" if failed else None,
        "num_frames": 0 if failed else 16,
        "num_clips": {"a": 2, "b": 1, "c": 0}[source_id],
    }


def _entry(out: str, path: str, table: pa.Table) -> TableEntry:
    num_bytes, sha256 = write_table(f"{out}/{path}", table)
    return TableEntry(path=path, rows=table.num_rows, bytes=num_bytes, sha256=sha256)
