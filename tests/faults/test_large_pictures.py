"""Pictures that are larger than the memory for them: each is a row, and the machine keeps its memory."""

import shutil
import struct
import zlib
from pathlib import Path

import pytest

from pipelines.shards import ShardSet
from tests.faults.runs import Run

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(600)]
MOST_BYTES = 4e9
OVER_BUDGET = 3
BIT_DEPTH = 16
SETTINGS = (
    "--sampling.clip-frames", "1", "--sampling.stride-frames", "1", "--spans-per-file", "1", "--num-cpus", "2"
)  # fmt: skip


def make_picture(path: Path, side: int) -> Path:
    """A PNG of side x side pixels of 16 bits in one colour: 6 bytes a pixel, once it is decoded."""
    packer = zlib.compressobj(1)
    line = bytes(1) + bytes(range(6)) * side
    pixels = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, BIT_DEPTH, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_pictures_end_as_rows_within_the_memory_of_the_machine(tmp_path: Path, tokenizer_bundle: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for (one, other), side in (("ab", 9000), ("cd", 10_500)):  # of which the larger ones take too much
        shutil.copy(make_picture(folder / f"{one}.png", side), folder / f"{other}.png")
    run = Run(
        name="tokenize", videos=str(folder), out=str(tmp_path / "out"), tokenizer=tokenizer_bundle,
        settings=SETTINGS,
    )  # fmt: skip
    most = run.most_held(tmp_path / "log", code=OVER_BUDGET)
    assert most < MOST_BYTES, f"{most / 1e9:.2f} GB"
    rows = {row["source"]: row for row in ShardSet.open(run.out).spans().to_pylist()}
    assert {name: rows[name]["error_class"] for name in rows} == {
        "a.png": None, "b.png": None, "c.png": "memory_limit", "d.png": "memory_limit",
    }  # fmt: skip
    assert "--limits.memory-mb" in rows["c.png"]["error"]
