"""A source as an open local file; a remote one is fetched once a node, whichever processes want it.

Copies lie in a folder that the processes of a user on a node share. One of them fetches a source while the
others wait, under a lock that dies with its holder; a copy appears complete, by a rename. The folder is
bounded: before a fetch, the copies that were used least recently go. Those who have one open keep it, as an
open file outlives its name. The first process to come when no other is there clears what a killed one left.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from infra import storage
from infra.errors import StorageError
from infra.file_locks import locked
from infra.storage import FileInfo
from pipelines.source_errors import SourceError, StalledError, not_opened, vanished

DISK_SHARE = 0.5
"""Of what the disk has free, copies included: the most that copies may take; but one always has room."""
LEAVING_SECONDS = 3.0
NUM_LOCKS = 64
"""Sources fetched at a time, at most. A fixed number of lock files, since deleting one is a race."""


_STALLED: list[contextlib.ExitStack] = []
"""Files of this process whose mounts do not answer."""


class UnreadableError(Exception):
    """The name is there, but no regular file can be opened under it."""


@contextlib.contextmanager
def opened_locally(uri: str) -> Iterator[IO[bytes]]:
    """Raises UnreadableError, SourceError where this one is lost, or StorageError. One that stalls stays
    open: so the command can say so before it waits for the mount at its own end."""
    if not storage.is_local(uri):
        yield THIS_PROCESS.copy_of(uri)
        return
    path = storage.absolute(uri)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", opener=lambda *_: _open_regular(uri, path)))
        try:
            yield file
        except StalledError:
            _STALLED.append(stack.pop_all())
            raise


def _open_regular(uri: str, path: str) -> int:
    """A descriptor. Never waits, as opening a pipe would, and never opens a device, which may act on it."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says if it may be read
            raise UnreadableError(f"{uri} is no regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except PermissionError as error:
        raise UnreadableError(f"{uri} may not be read: {error.strerror}") from None
    except FileNotFoundError:
        if os.path.islink(path):
            raise UnreadableError(f"{uri} is a link to nothing") from None
        raise vanished(uri) from None
    except OSError as error:
        raise _explained(uri, error) from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise UnreadableError(f"{uri} is no regular file")


def _explained(uri: str, error: OSError) -> Exception:
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
        return UnreadableError(f"{uri} is no regular file: {error.strerror}")
    return not_opened(uri, error)


class SourceCache:
    """This process's part in the copies of its node; it keeps the last one open, as spans of a source follow
    each other."""

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder or os.path.join(tempfile.gettempdir(), f"reelgpt-sources-{os.getuid()}")
        self._users: int | None = None
        """Locked while this process lives: shared by all that use the copies."""
        self._open: tuple[str, IO[bytes]] | None = None

    def copy_of(self, uri: str) -> IO[bytes]:
        """An open copy at its beginning, fetched by whoever comes first. Raises StorageError."""
        if self._open is None or self._open[0] != uri:
            self._close_copy()
            found = storage.describe(uri)
            if found is None:
                raise vanished(uri)
            self.join()
            self._open = uri, self._opened_copy(found)
        self._open[1].seek(0)
        return self._open[1]

    def has_copies(self) -> bool:
        return os.path.isdir(self._folder) and bool(self._names())

    def close(self) -> None:
        """The last of a node's processes to close leaves no copy behind."""
        self._close_copy()
        if self._users is not None:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._clear()
            os.close(self._users)
            self._users = None

    def _close_copy(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def join(self) -> None:
        """Counts this process among the users; the first to come clears what was left."""
        if self._users is not None:
            return
        self._make_folder()
        self._users = os.open(
            os.path.join(self._folder, "users"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._clear()
        fcntl.flock(self._users, fcntl.LOCK_SH)
        atexit.register(self.close)

    def _make_folder(self) -> None:
        """Of this user alone: a folder of a known name in /tmp could be another's."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        status = os.lstat(self._folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise StorageError(
                f"{self._folder} belongs to somebody else; remove it, or set TMPDIR to a folder of your own"
            )

    def _opened_copy(self, source: FileInfo) -> IO[bytes]:
        key = hashlib.sha256(repr((source.uri, source.size, source.modified)).encode()).hexdigest()
        path = os.path.join(self._folder, f"{key}.copy")
        with locked(os.path.join(self._folder, f"lock-{int(key, 16) % NUM_LOCKS}")):
            try:
                copy = open(path, "rb")  # noqa: SIM115 - kept for the next span
            except FileNotFoundError:
                self._fetch(source, path)
                copy = open(path, "rb")  # noqa: SIM115
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # used just now; an eviction may have taken the name already
        return copy

    def _fetch(self, source: FileInfo, path: str) -> None:
        """Into the room that is made for it. What a killed fetch of the same source left goes first."""
        for name in self._names(prefix=os.path.basename(path)):
            self._remove(name)
        with locked(os.path.join(self._folder, "evicting")):
            self._make_room(source.size)
        try:
            storage.fetch(source.uri, path)
        except StorageError:
            if storage.describe(source.uri) is None:
                raise vanished(source.uri) from None
            raise
        if os.path.getsize(path) != source.size:
            self._remove(os.path.basename(path))
            raise SourceError(f"{source.uri} changed while it was fetched; repeat the command")

    def _make_room(self, num_bytes: int) -> None:
        copies = sorted(self._copies(), key=lambda copy: copy[1])
        used = sum(size for _, _, size in copies)
        for name, _, size in copies:
            if used + num_bytes <= self._most_bytes(used):
                return
            self._remove(name)
            used -= size

    def _most_bytes(self, used: int) -> int:
        return int(DISK_SHARE * (shutil.disk_usage(self._folder).free + used))

    def _copies(self) -> Iterator[tuple[str, float, int]]:
        """Name, time of last use, and bytes."""
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(os.path.join(self._folder, name))
                yield name, status.st_mtime, status.st_size

    def _names(self, prefix: str = "") -> list[str]:
        """Of copies, and of fetches under way or left by the dead."""
        return [name for name in os.listdir(self._folder) if ".copy" in name and name.startswith(prefix)]

    def _clear(self) -> None:
        for name in self._names():
            self._remove(name)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self._folder, name))


THIS_PROCESS = SourceCache()


def clear_unused() -> None:
    """Removes this node's copies once those that used them are gone, which may take them a moment."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while THIS_PROCESS.has_copies() and time.monotonic() < deadline:
        THIS_PROCESS.join()
        THIS_PROCESS.close()
        time.sleep(0.1)
