"""Files that are hashed while they are written, as those of `verified_files` while they are read."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


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
