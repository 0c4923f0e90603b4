"""What DeepSpeed writes and reads, through our hands: snapshots that are hashed while they are written, and
files that are read only once their hashes are right, and only as data (`weights_only`), never as code.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from infra.errors import CheckpointError
from infra.storage_errors import FULL
from training.engine.host_copies import HostCopies
from training.saving.hashed_files import HashedFile, hashed_file
from training.saving.manifest import FileRecord
from training.saving.verified_files import VerifiedFiles


@dataclass(frozen=True, slots=True)
class Snapshot:
    """This rank's part of a checkpoint as it stood at one step, held until it is written."""

    folder: str
    rank: int
    parts: tuple[tuple[Any, str], ...]
    """What each file is to hold, and the file's path."""
    copies: HostCopies
    problem: CheckpointError | None
    """Why parts of it are not there; `write` says so, as the others are to hear of it."""

    def write(self) -> list[FileRecord]:
        """Puts the files on the disk. Raises CheckpointError where it does not take them."""
        if self.problem:
            raise self.problem
        self.copies.finish()
        return [self._write(state, path) for state, path in self.parts]

    def _write(self, state: Any, path: str) -> FileRecord:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with hashed_file(path) as file:
                _put(state, file, path)
        except (OSError, RuntimeError) as error:  # torch wraps what the file answered
            cause = error if isinstance(error, OSError) else error.__context__ or error
            is_full = getattr(cause, "errno", None) in FULL
            remedy = "make room" if is_full else "see to it that it can be"
            raise CheckpointError(
                f"{path} cannot be written: {cause}; {remedy} and repeat the command"
            ) from error
        name = os.path.relpath(path, self.folder)
        return FileRecord(name=name, size=file.size, sha256=file.hexdigest(), rank=self.rank)


def _put(state: Any, file: HashedFile, path: str) -> None:
    if path.endswith(".safetensors"):
        file.write(safetensors.torch.save({name: tensor.cpu() for name, tensor in state.items()}))
    else:
        torch.save(state, file)  # type: ignore[arg-type]


def _leave_to_the_writing(*_: Any, **__: Any) -> None:
    """DeepSpeed makes folders while the step stands still; `Snapshot.write` makes them instead."""


class EngineFiles:
    """Stands in for the file access of DeepSpeed's checkpoint engine."""

    def __init__(self, checkpoint_engine: Any, rank: int) -> None:
        self._rank = rank
        self._copies = HostCopies()
        self.waited_seconds = 0.0
        """That `finish_copies` has held up its callers."""
        self._parts: list[tuple[Any, str]] = []
        self._folder = ""
        self._is_copied = False
        self._problem: CheckpointError | None = None
        self._source: VerifiedFiles | None = None
        self._loaded: tuple[str, Any] = "", None
        """What was loaded last, and where it lies."""
        checkpoint_engine.save = self._save
        checkpoint_engine.load = self._load
        checkpoint_engine.makedirs = _leave_to_the_writing

    def collect(self, folder: str, *, copied: bool) -> None:
        """From now on, what DeepSpeed saves is gathered; `copied` keeps it as it is now, whatever comes once
        `finish_copies` was called."""
        self._folder, self._parts, self._is_copied, self._problem = folder, [], copied, None

    def add(self, name: str, tensors: dict[str, Tensor]) -> None:
        """A file of ours beside DeepSpeed's, in safetensors."""
        self._save(tensors, os.path.join(self._folder, name))

    @contextmanager
    def read_from(self, files: VerifiedFiles) -> Iterator[None]:
        """Inside, DeepSpeed reads these files, and nothing that torch loads can run code."""
        self._source = files
        try:
            with only_data():
                yield
        finally:
            self._source, self._loaded = None, ("", None)

    def snapshot(self) -> Snapshot:
        """Of what was gathered."""
        return Snapshot(self._folder, self._rank, tuple(self._parts), self._copies, self._problem)

    def finish_copies(self) -> None:
        """To be called before anything that a snapshot holds is changed."""
        began = time.monotonic()
        self._copies.finish()
        self.waited_seconds += time.monotonic() - began

    def _save(self, state_dict: Any, path: str) -> None:
        try:
            kept = self._copies.begin(os.path.basename(path), state_dict) if self._is_copied else state_dict
        except CheckpointError as error:
            self._problem = error
        else:
            self._parts.append((kept, path))

    def _load(self, path: str, map_location: Any = None) -> Any:
        """DeepSpeed asks for the file of the model twice in a row, the first time to look at one number."""
        assert self._source is not None
        if self._loaded[0] != path:
            file: Any = self._source.take(path)
            self._loaded = path, torch.load(file, map_location=map_location or "cpu", weights_only=True)
        return self._loaded[1]


@contextmanager
def only_data() -> Iterator[None]:
    """Inside, torch.load refuses to run code, whatever it is asked: DeepSpeed asks for the opposite."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    known = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
