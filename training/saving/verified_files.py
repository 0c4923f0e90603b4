"""The files of a checkpoint as their reader gets them: the very bytes that were hashed, not a second look.

Hashing happens while reading, so that a resume reads every byte once.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from infra import storage
from infra.errors import CheckpointError, RottenError, StorageError
from infra.seekable import Seekable
from training.saving.manifest import Checkpoint, FileRecord, Problem

PART_BYTES = 16 << 20
KEPT_BYTES = 8 << 30
"""Of verified files that wait in memory to be parsed; what exceeds it is read, and hashed, once more."""


class HeldFile(Seekable):
    """The bytes of a file in memory, to be read from where they are: `io.BytesIO` would copy them."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(len(data))
        self._data = data

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


class VerifiedFiles:
    def __init__(self, root: str, checkpoint: Checkpoint) -> None:
        self.folder = storage.join(root, checkpoint.name)
        self._records = {record.name: record for record in checkpoint.files}
        self._kept: dict[str, HeldFile] = {}
        self._room = KEPT_BYTES

    def problem(self, record: FileRecord) -> Problem | None:
        """What is wrong with a file; one that is whole waits in memory to be taken, if there is room."""
        if record.size > self._room:
            return problem_of(self.folder, record)
        try:
            self._kept[record.name] = self._read(record)
        except (StorageError, CheckpointError) as error:
            return Problem.of(error)
        except OSError as error:
            return _unread(record, error)
        self._room -= record.size
        return None

    def take(self, path: str) -> HeldFile:
        """A file of the checkpoint, from its beginning. Raises CheckpointError unless it is as committed."""
        name = os.path.relpath(path, self.folder)
        if name not in self._records:
            raise CheckpointError(f"{name} is no file that {self.folder} was committed with")
        return self._kept.pop(name, None) or self._read(self._records[name])

    def forget(self) -> None:
        """Frees what waits in memory: the run has gone on, and what nobody took is not needed."""
        self._kept.clear()

    def _read(self, record: FileRecord) -> HeldFile:
        """A part is hashed while the next one is read; memory is touched once, since that takes as long as
        reading does."""
        digest, data, filled = hashlib.sha256(), np.empty(record.size, np.uint8).data, 0
        place = storage.join(self.folder, record.name)
        with ThreadPoolExecutor(1) as hasher, storage.open_input(place) as file:
            reader: Any = file
            while count := reader.readinto(data[filled : filled + PART_BYTES]):
                hasher.submit(digest.update, data[filled : filled + count])
                filled += count
            is_longer = bool(file.read(1))
        if filled < record.size or is_longer or digest.hexdigest() != record.sha256:
            raise RottenError(_other_bytes(record))
        return HeldFile(data)


def problem_of(folder: str, record: FileRecord) -> Problem | None:
    """What is wrong with a file of a checkpoint, whatever its size."""
    try:
        with storage.open_input(storage.join(folder, record.name)) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except StorageError as error:
        return Problem.of(error)
    except OSError as error:
        return _unread(record, error)
    return None if found == record.sha256 else Problem(_other_bytes(record), is_rot=True)


def _unread(record: FileRecord, error: OSError) -> Problem:
    return Problem(f"{record.name} cannot be read: {error}", is_rot=False)


def _other_bytes(record: FileRecord) -> str:
    return f"{record.name} has other bytes than were committed"
