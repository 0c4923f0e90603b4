"""Checkpoints of one file of a few bytes."""

from pathlib import Path
from typing import Any

from training.saving import checkpoints
from training.saving.hashed_files import hashed_file
from training.saving.manifest import FileRecord


def commit(root: Path, step: int, *, data: bytes = b"weights", state: dict[str, Any] | None = None) -> Path:
    """A committed checkpoint; its folder."""
    name = checkpoints.name_of(step, checkpoints.new_suffix())
    record = write(root / name, data)
    checkpoints.commit(str(root), name=name, step=step, state=state or {"step": step}, files=[record])
    return root / name


def write(folder: Path, data: bytes) -> FileRecord:
    folder.mkdir(parents=True)
    with hashed_file(str(folder / "weights.pt")) as file:
        file.write(data)
    return FileRecord(name="weights.pt", size=file.size, sha256=file.hexdigest(), rank=0)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
