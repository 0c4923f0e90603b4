"""The local side of storage: writes that are complete or absent, listings that end, rubbish that goes.

A write goes to a name of its own beside the file, is synced, takes the file's place in one step, and the
folder is synced too. A writer that was killed leaves its unfinished file, which listings pass over.
"""

import contextlib
import heapq
import os
import pathlib
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


def walk(
    folder: str, enter: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Every file below `folder` with what is known of it. None is known of what is no regular file, such as a
    pipe or a link that leads nowhere, nor of a folder that may not be read, whose path ends with a slash.

    A link to a folder is followed, but not one that leads up: what is above is not below. A folder that can
    be reached in two ways is gone through once, in the way with fewer links. `enter` says of a folder below
    whether it is gone through at all.
    """
    seen = _above(folder)
    pending = [(0, folder)]
    while pending:
        links, current = heapq.heappop(pending)
        try:
            identity = _identity(current)
            entries = _entries(current) if identity not in seen else []
        except (FileNotFoundError, NotADirectoryError):  # removed while we looked
            continue
        except PermissionError:
            if current == folder:
                raise
            yield current + "/", None
            continue
        seen.add(identity)
        for entry in entries:
            if not _is_folder(entry):
                yield entry.path, regular(entry.path)
            elif enter(entry.path):
                heapq.heappush(pending, (links + entry.is_symlink(), entry.path))


def matching(pattern: str, root: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """Every file that a glob names, as `walk` gives it, and the folders on the way that may not be read.
    `root` is the folder that its fixed part ends with."""
    from fsspec.utils import glob_translate

    parts, named = pattern.split("/"), re.compile(glob_translate(pattern))

    def may_hold_some(folder: str) -> bool:
        above = parts[: folder.count("/") + 1]
        return "**" in above or (above != parts and bool(re.match(glob_translate("/".join(above)), folder)))

    for path, state in walk(root.rstrip("/") or "/", may_hold_some):
        if path.endswith("/") or named.match(path):
            yield path, state


def look_at(path: str) -> tuple[os.stat_result | None, bool]:
    """What `walk` would give of one file, and whether there is any: a folder is none.

    Raises OSError where it cannot be seen, for another reason than a link that leads nowhere.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None, os.path.islink(path)
    except OSError:
        if not os.path.islink(path):
            raise
        return None, True
    return _if_regular(found), not stat.S_ISDIR(found.st_mode)


def regular(path: str) -> os.stat_result | None:
    """What is known of the regular file there; None of anything else. Nothing is opened."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return _if_regular(found)


def _if_regular(found: os.stat_result) -> os.stat_result | None:
    return found if stat.S_ISREG(found.st_mode) else None


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
        if state and UNFINISHED.search(path) and state.st_mtime < limit:
            delete(path)
            count += 1
    return count


def _above(folder: str) -> set[tuple[int, int]]:
    """The folders that `folder` lies in, as far as one can see."""
    found = set[tuple[int, int]]()
    for parent in pathlib.Path(os.path.realpath(folder)).parents:
        with contextlib.suppress(OSError):
            found.add(_identity(str(parent)))
    return found


def _identity(path: str) -> tuple[int, int]:
    """What is the same however one comes there."""
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return list(entries)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or to itself
        return False


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
