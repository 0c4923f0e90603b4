"""The local side of storage: writes that are complete or absent, listings that end, rubbish that goes.

A write goes to a name of its own beside the file, is synced, takes the file's place in one step, and the
folder is synced too. A writer that was killed leaves its unfinished file, which listings pass over.
"""

import contextlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO

UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp$")
"""How the name of an unfinished write of ours ends; a file that somebody called `x.tmp` is theirs."""


def replace(path: str, source: IO[bytes]) -> None:
    """Puts the stream at `path`, complete or absent, in place of what is there."""
    with _temporary(path) as fill:
        os.replace(fill(source), path)
        _sync_folder(path)


def create(path: str, source: IO[bytes]) -> bool:
    """Puts the stream at `path` where there is nothing; False where there is. Safe on NFS too."""
    with _temporary(path) as fill:
        try:
            os.link(fill(source), path)
        except FileExistsError:
            return False
        _sync_folder(path)
        return True


def arriving(path: str) -> str:
    """A name beside `path` that no other writer uses."""
    return f"{path}.{uuid.uuid4().hex}.tmp"


def walk(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below `folder` with what is known of it. Links are followed, but not in a circle;
    what is no file (a pipe, a link that leads nowhere) is none of ours."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        current, above = pending.pop()
        try:
            state = os.stat(current)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if (state.st_dev, state.st_ino) not in above:
            inside = above | {(state.st_dev, state.st_ino)}
            for entry in _entries(current):
                if _is_folder(entry):
                    pending.append((entry.path, inside))
                elif (found := _stat(entry)) is not None:
                    yield entry.path, found


def delete(path: str) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing there is fine."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def sweep(folder: str, *, older_than_seconds: float) -> int:
    """Removes what killed writers left unfinished; counts it. Younger ones may be at work."""
    limit, count = time.time() - older_than_seconds, 0
    for path, state in walk(folder):
        if UNFINISHED.search(path) and state.st_mtime < limit:
            delete(path)
            count += 1
    return count


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # removed while we looked
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or to itself
        return False


def _stat(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        found = entry.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[Callable[[IO[bytes]], str]]:
    """Gives a function that writes and syncs a stream under a name beside `path`, which is gone after."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = arriving(path)

    def fill(source: IO[bytes]) -> str:
        with open(unfinished, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        return unfinished

    try:
        yield fill
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
