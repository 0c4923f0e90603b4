"""What one process of a machine has at a time; the kernel lets go of it when that process dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def locked(path: str | os.PathLike[str], *, waits: bool = True) -> Iterator[None]:
    """Of a folder that is there, or of a file that is made if need be.

    Raises BlockingIOError where another process has it and this one does not wait.
    """
    is_folder = os.path.isdir(path)
    descriptor = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT) | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
