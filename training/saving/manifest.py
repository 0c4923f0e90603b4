"""What a checkpoint says of itself: its MANIFEST.json, which is written last and makes it exist.

checkpoints/step-00000040-5c1f20ab/...            what the ranks wrote, under a name of this attempt's own
                                                          (`records` is how they say so)
checkpoints/step-00000040-5c1f20ab/MANIFEST.json  last: the run's state, every file's size and SHA-256,
                                                          and a digest of all this
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from infra import configs, hashing, storage
from infra.errors import CheckpointError, ConfigError, NotJsonError, RottenError, StorageError

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
FOLDER = re.compile(r"step-(\d+)-[0-9a-f]{8}")
"""As an attempt to save names its own; by another name a folder was kept by somebody."""
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
    """Of its folder, also where that was renamed since."""
    step: int
    committed_at: float
    """Seconds since 1970: of two of the same step, the later attempt counts."""
    state: dict[str, Any]
    """What the run must know to go on, beside what the engine keeps in the files."""
    files: tuple[FileRecord, ...]

    @property
    def age(self) -> tuple[int, float]:
        """What makes one checkpoint newer than another."""
        return self.step, self.committed_at


@dataclass(frozen=True, slots=True)
class Problem:
    text: str
    is_rot: bool
    """Its bytes are known to be gone, or others than were committed. What merely could not be read, now and
    here and by this build, may be whole, and nobody deletes it."""

    @classmethod
    def of(cls, error: Exception) -> "Problem":
        return cls(str(error), is_rot=isinstance(error, RottenError))

    def __str__(self) -> str:
        return self.text


CLOSED = Problem("its folder may not be read; check the permissions", is_rot=False)


@dataclass(frozen=True, slots=True)
class Damage:
    name: str
    """Of a checkpoint."""
    problem: Problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


def committed(root: str) -> tuple[list[Checkpoint], list[Damage]]:
    """Checkpoints whose files are there with the right sizes, newest first; and the others."""
    files = {file.name: file for file in storage.list_files(root, irregular=True)}
    closed = {path.rstrip("/") for path in files if path.endswith("/")}
    whole, damaged = [], [Damage(name, CLOSED) for name in closed if FOLDER.fullmatch(name)]
    for path in files:
        name, _, file = path.partition("/")
        if file != MANIFEST:
            continue
        try:
            checkpoint = read_manifest(root, name)
        except UNREADABLE as error:
            damaged.append(Damage(name, Problem.of(error)))
            continue
        problem = _problem(checkpoint, files, closed)
        if problem:
            damaged.append(Damage(name, problem))
        else:
            whole.append(checkpoint)
    whole.sort(key=lambda checkpoint: checkpoint.age, reverse=True)
    return whole, sorted(damaged, key=lambda damage: damage.name, reverse=True)


def read_manifest(root: str, name: str) -> Checkpoint:
    """Raises one of UNREADABLE where there is none that this build reads."""
    try:
        values = storage.read_json(storage.join(root, name, MANIFEST))
    except NotJsonError:
        raise RottenError(f"its {MANIFEST} is no longer JSON, as it was when it was committed") from None
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"its {MANIFEST} is not of format {FORMAT_VERSION}, which this build reads")
    if values.pop("digest", None) != hashing.digest(values):
        raise RottenError(f"its {MANIFEST} has other bytes than were committed")
    return replace(configs.from_dict(Checkpoint, values), name=name)


def write_manifest(root: str, checkpoint: Checkpoint) -> None:
    """Makes the checkpoint exist: everything else of it must be on the disk."""
    values = configs.to_dict(checkpoint)
    digest = hashing.digest(values)
    storage.write_json(storage.join(root, checkpoint.name, MANIFEST), values | {"digest": digest})


def delete(root: str, name: str) -> None:
    """The manifest goes first, so that a deletion cut short leaves no checkpoint that looks damaged."""
    storage.delete(storage.join(root, name, MANIFEST))
    storage.delete(storage.join(root, name))


def _problem(checkpoint: Checkpoint, files: dict[str, storage.FileInfo], closed: set[str]) -> Problem | None:
    """What a look at the folder tells: sizes, and what cannot be looked at."""
    for record in checkpoint.files:
        path = f"{checkpoint.name}/{record.name}"
        found = files.get(path)
        if found is None:
            is_hidden = any(path.startswith(f"{folder}/") for folder in closed)
            return CLOSED if is_hidden else Problem(f"{record.name} is missing", is_rot=True)
        if not found.size and not found.modified:
            return Problem(f"{record.name} is out of reach, as a link to a disk that is away", is_rot=False)
        if found.size != record.size:
            text = f"{record.name} has {found.size} bytes, committed with {record.size}"
            return Problem(text, is_rot=True)
    return None
