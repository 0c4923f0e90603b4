"""Sources that are not to be had, in sentences: which of them says something of itself alone."""

import errno
import socket
from typing import IO

from infra.errors import StorageError

OF_ONE_FILE = (errno.EIO, errno.ESTALE, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO)
"""What a disk says that has lost one file, or a server: reading it would be answered so, too. All else (no
connection, no memory, too many open files) is a trouble that the next file would meet as well."""


class SourceError(StorageError):
    """One source is not to be had as it was listed; that says nothing of the others."""


class StalledError(StorageError):
    """Where a source is mounted does not answer. Closing it may wait as reading it does."""


def not_opened(uri: str, error: OSError) -> StorageError:
    return _kind(error.errno)(f"{uri} cannot be opened: {error.strerror}; mend that, and repeat the command")


def failing_disk(file: IO[bytes], number: int | None, reason: str) -> StorageError:
    """`number`: the errno of a read."""
    return _kind(number)(
        f"{file.name} cannot be read to its end on {socket.gethostname()}: {reason}; mend the disk, fetch "
        f"the file anew, or leave it out with --exclude, and repeat the command"
    )


def vanished(uri: str) -> SourceError:
    return SourceError(f"there is nothing at {uri}; it was there a moment ago: repeat the command")


def stalled(file: IO[bytes], seconds: float) -> StalledError:
    return StalledError(
        f"{file.name} cannot be read on {socket.gethostname()}: no answer for {seconds:g} s from where it is "
        f"mounted; repeat the command once that answers"
    )


def _kind(number: int | None) -> type[StorageError]:
    return SourceError if number in OF_ONE_FILE else StorageError
