"""The files of a checkpoint as their reader gets them: the very bytes that were hashed, not a second look.

Hashing happens while reading, so that a resume reads every byte once.
"""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor

from infra import storage
from infra.errors import CheckpointError, RottenError, StorageError
from training.saving.manifest import Checkpoint, FileRecord, Problem

PART_BYTES = 16 << 20
KEPT_BYTES = 8 << 30
"""Of verified files that wait in memory to be parsed; what exceeds it is read, and hashed, once more."""


class VerifiedFiles:
    def __init__(self, root: str, checkpoint: Checkpoint) -> None:
        self.folder = storage.join(root, checkpoint.name)
        self._records = {record.name: record for record in checkpoint.files}
        self._kept: dict[str, bytes] = {}
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

    def take(self, path: str) -> bytes:
        """The bytes of a file of the checkpoint. Raises CheckpointError unless they are as committed."""
        name = os.path.relpath(path, self.folder)
        if name not in self._records:
            raise CheckpointError(f"{name} is no file that {self.folder} was committed with")
        return self._kept.pop(name, None) or self._read(self._records[name])

    def forget(self) -> None:
        """Frees what waits in memory: the run has gone on, and what nobody took is not needed."""
        self._kept.clear()

    def _read(self, record: FileRecord) -> bytes:
        """A part is hashed while the next one is read."""
        digest, data, hashed = hashlib.sha256(), io.BytesIO(), None
        place = storage.join(self.folder, record.name)
        with ThreadPoolExecutor(1) as hasher, storage.open_input(place) as file:
            while part := file.read(PART_BYTES):
                if hashed is not None:
                    hashed.result()
                hashed = hasher.submit(digest.update, part)
                data.write(part)
        if digest.hexdigest() != record.sha256:
            raise RottenError(_other_bytes(record))
        return data.getvalue()


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
