"""The commit protocol of checkpoints: one exists once its MANIFEST.json does, and not before.

    checkpoints/step-00000040-5c1f20ab/...            what the ranks wrote, under a name of this attempt's own
    checkpoints/step-00000040-5c1f20ab/MANIFEST.json  last: the run's state, every file's size and SHA-256

Knows files, hashes and manifests; what is in the files is the engine's matter. So a rank that dies while
saving leaves rubbish that nobody mistakes for a checkpoint, and a file that rots later is found before it is
read.
"""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from infra import configs, storage
from infra.errors import CheckpointError, ConfigError, StorageError
from training.ranks import Ranks

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
FOLDER = re.compile(r"step-(\d+)-")
UNREADABLE = (StorageError, ConfigError, CheckpointError)
"""What a manifest that is damaged, of another format or not there at all is met with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    name: str
    """Relative to the checkpoint."""
    size: int
    sha256: str
    rank: int
    """Who wrote it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    format_version: int
    name: str
    """Of its folder."""
    step: int
    committed_at: float
    """Seconds since 1970: of two of the same step, the later attempt counts."""
    state: dict[str, Any]
    """What the run must know to go on, beside what the engine keeps in the files."""
    files: tuple[FileRecord, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Found:
    checkpoint: Checkpoint | None
    passed_over: tuple[Damage, ...]


class HashedFile:
    """A file that is hashed while it is written, front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def hashed_file(path: str) -> Iterator[HashedFile]:
    """A new file, on the disk itself once the block is left."""
    with open(path, "wb") as file:
        yield HashedFile(file)
        file.flush()
        os.fsync(file.fileno())


def commit(
    root: str, *, step: int, state: dict[str, Any], ranks: Ranks, write: Callable[[str], Sequence[FileRecord]]
) -> str:
    """Saves a checkpoint below `root` and returns its folder's name; `write(name)` puts this rank's files
    into it.

    The manifest is written only when every rank has said what it wrote, and follows everything else.
    """
    name = ranks.broadcast(f"step-{step:08d}-{uuid.uuid4().hex[:8]}")
    files = [record for records in ranks.gather(list(write(name))) for record in records]
    if ranks.is_first:
        checkpoint = Checkpoint(
            format_version=FORMAT_VERSION,
            name=name,
            step=step,
            committed_at=time.time(),
            state=state,
            files=tuple(sorted(files, key=lambda record: record.name)),
        )
        storage.write_json(storage.join(root, name, MANIFEST), configs.to_dict(checkpoint))
    return name


def find(root: str, ranks: Ranks) -> Found:
    """The newest whole checkpoint; None where none was ever committed.

    Rank 0 looks at manifests and sizes and tells the others; each rank hashes what it will read. What is
    damaged is named, and the next older one taken. Raises CheckpointError where there are some and none is
    whole.
    """
    candidates, passed_over = ranks.on_first(lambda: committed(root))
    for candidate in candidates:
        problems = ranks.gather(_misread(root, candidate, ranks.rank))
        problem = next((problem for problem in problems if problem), None)
        if problem is None:
            return Found(candidate, tuple(passed_over))
        passed_over.append(Damage(candidate.name, problem))
    if passed_over:
        raise CheckpointError(
            f"no checkpoint in {root} is whole ({'; '.join(map(str, passed_over))}); "
            f"restore one of them, or start anew in another run directory"
        )
    return Found(None, ())


def committed(root: str) -> tuple[list[Checkpoint], list[Damage]]:
    """Checkpoints whose files are there with the right sizes, newest first; and the others."""
    sizes = {file.name: file.size for file in storage.list_files(root)}
    whole, damaged = [], []
    for path in sizes:
        name, _, file = path.rpartition("/")
        if file != MANIFEST:
            continue
        try:
            checkpoint = _read_manifest(root, name)
        except UNREADABLE as error:
            damaged.append(Damage(name, str(error)))
            continue
        problem = _missized(checkpoint, sizes)
        if problem:
            damaged.append(Damage(name, problem))
        else:
            whole.append(checkpoint)
    whole.sort(key=lambda checkpoint: (checkpoint.step, checkpoint.committed_at), reverse=True)
    return whole, sorted(damaged, key=lambda damage: damage.name, reverse=True)


def problems(uri: str) -> list[str]:
    """What is wrong with the checkpoint at `uri`, a sentence each; empty when every byte is as committed."""
    root, _, name = storage.absolute(uri).rstrip("/").rpartition("/")
    try:
        checkpoint = _read_manifest(root, name)
    except UNREADABLE as error:
        return [str(error)]
    checks = (_check_file(root, checkpoint, record) for record in checkpoint.files)
    return [problem for problem in checks if problem]


def prune(root: str, *, keep_last: int, unwanted: Iterable[str] = ()) -> None:
    """Deletes all but the last checkpoints, those known as `unwanted`, and what dead attempts left behind.

    A folder of a step after the newest checkpoint's is spared: somebody may be writing it.
    """
    unwanted = set(unwanted)
    whole = [checkpoint for checkpoint in committed(root)[0] if checkpoint.name not in unwanted]
    newest = whole[0].step if whole else 0
    kept = {checkpoint.name for checkpoint in whole[:keep_last]}
    for name in sorted({file.name.partition("/")[0] for file in storage.list_files(root)} - kept):
        folder = FOLDER.match(name)
        if name in unwanted or folder is None or int(folder[1]) <= newest:
            _delete(root, name)


def rewind(root: str, step: int) -> None:
    """Deletes the checkpoints later than `step`. Raises CheckpointError unless that of `step` is whole."""
    whole, _ = committed(root)
    chosen = next((checkpoint for checkpoint in whole if checkpoint.step == step), None)
    if chosen is None:
        known = sorted({checkpoint.step for checkpoint in whole})
        raise CheckpointError(
            f"there is no whole checkpoint of step {step} in {root}; it has those of {known}"
        )
    if found := problems(storage.join(root, chosen.name)):
        raise CheckpointError(
            f"the checkpoint of step {step} in {root} is damaged: {found[0]}; take another step"
        )
    for checkpoint in whole:
        if checkpoint.step > step:
            _delete(root, checkpoint.name)


def _delete(root: str, name: str) -> None:
    """The manifest goes first, so that a deletion cut short leaves no checkpoint that looks damaged."""
    storage.delete(storage.join(root, name, MANIFEST))
    storage.delete(storage.join(root, name))


def _read_manifest(root: str, name: str) -> Checkpoint:
    values = storage.read_json(storage.join(root, name, MANIFEST))
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"its {MANIFEST} is not of format {FORMAT_VERSION}, which this build reads")
    return configs.from_dict(Checkpoint, values)


def _missized(checkpoint: Checkpoint, sizes: dict[str, int]) -> str | None:
    for record in checkpoint.files:
        size = sizes.get(f"{checkpoint.name}/{record.name}")
        if size is None:
            return f"{record.name} is missing"
        if size != record.size:
            return f"{record.name} has {size} bytes, committed with {record.size}"
    return None


def _misread(root: str, checkpoint: Checkpoint, rank: int) -> str | None:
    """What is wrong with the files that a rank reads: its own, and rank 0's, which everybody shares."""
    for record in checkpoint.files:
        if record.rank in (0, rank) and (problem := _check_file(root, checkpoint, record)):
            return problem
    return None


def _check_file(root: str, checkpoint: Checkpoint, record: FileRecord) -> str | None:
    uri = storage.join(root, checkpoint.name, record.name)
    try:
        with storage.open_input(uri) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except StorageError as error:
        return str(error)
    except OSError as error:
        return f"{record.name} cannot be read: {error}"
    return None if found == record.sha256 else f"{record.name} has other bytes than were committed"
