"""Files by URI, local or remote: what one does with them, the same everywhere.

A write is complete or absent, a listing is of this moment, and what storage answers is one clear sentence.
How that is done on a file system is `infra.local_files`' matter, on an object store `infra.object_stores`';
the sentences are `infra.storage_errors`'. What the files mean is others'.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

from infra import local_files, object_stores
from infra.errors import NotJsonError, UsageError
from infra.storage_errors import explained

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*(::[a-z0-9+.-]+)*://")
FILE_SCHEME = re.compile(r"^file://(localhost(?=/))?")
SWEEP_AFTER_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class FileInfo:
    uri: str
    name: str
    """Path relative to the listed folder, with forward slashes."""
    size: int
    modified: str
    """What storage says of its last change: good to notice a change, never part of an identity."""


def absolute(uri: str) -> str:
    """`uri` such that it means the same from any working directory; remote URIs stay as they are.

    Raises UsageError where it is empty, as an unset variable of a shell is: it would be that directory.
    """
    if not uri:
        raise UsageError("a name is empty; give a path or a URI, and `.` for the working directory")
    return os.path.abspath(local_path(uri)) if is_local(uri) else uri


def local_path(uri: str) -> str:
    """The path behind a local name. In a path every sign stands for itself; in a `file://` URI `%20` is a
    space, as RFC 8089 has it."""
    if FILE_SCHEME.match(uri):
        return unquote(FILE_SCHEME.sub("", uri), errors="surrogateescape")
    return os.path.expanduser(uri)


def file_uri(path: str) -> str:
    """The URI of an absolute path, in ASCII whatever its bytes are."""
    return "file://" + quote(os.fsencode(path))


def is_local(uri: str) -> bool:
    return not SCHEME.match(uri) or uri.startswith("file://")


def join(uri: str, *names: str) -> str:
    return "/".join([uri.rstrip("/") if uri != "/" else "", *names])


def exists(uri: str) -> bool:
    with explained(uri):
        if is_local(uri):
            return os.path.exists(absolute(uri))
        fs, path = object_stores.open_remote(uri)
        return _info(fs, path) is not None


def read_bytes(uri: str) -> bytes:
    with explained(uri):
        if is_local(uri):
            with open(absolute(uri), "rb") as file:
                return file.read()
        return object_stores.read(*object_stores.open_remote(uri))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file, in one request; fewer where it ends before."""
    with explained(uri):
        if not is_local(uri):
            return object_stores.read(*object_stores.open_remote(uri), start, end)
        with open(absolute(uri), "rb") as file:
            file.seek(start)
            return file.read(end - start)


def read_json(uri: str) -> Any:
    """Raises NotJsonError where there is something else."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise NotJsonError(
            f"{uri} is not JSON ({error}); it was cut off or changed after it was written"
        ) from None


def write(uri: str, data: bytes | memoryview) -> None:
    """Puts `data` at `uri`, complete or absent, replacing what is there."""
    with explained(uri):
        if is_local(uri):
            local_files.replace(absolute(uri), io.BytesIO(data))
        else:
            fs, path = object_stores.open_remote(uri)
            fs.pipe_file(path, bytes(data))


def append(path: str, data: bytes) -> None:
    """Adds to the end of a local file; a kill can leave the last of it cut off."""
    with explained(path), open(absolute(path), "ab") as file:
        file.write(data)


def write_json(uri: str, value: Any) -> None:
    write(uri, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def create(uri: str, data: bytes) -> bool:
    """Puts `data` at `uri` only if nothing is there. False if something was; one of two racers wins."""
    with explained(uri):
        if is_local(uri):
            return local_files.create(absolute(uri), io.BytesIO(data))
        return object_stores.create(*object_stores.open_remote(uri), data)


def upload(local: str, uri: str) -> None:
    """Copies a local file to `uri`, complete or absent."""
    with explained(uri):
        if is_local(uri):
            with open(local, "rb") as source:
                local_files.replace(absolute(uri), source)
        else:
            fs, path = object_stores.open_remote(uri)
            fs.put_file(local, path)


def fetch(uri: str, local: str) -> None:
    """Copies the file at `uri` to the path `local`, complete or absent."""
    with explained(uri), _full_disk_named(local):
        if is_local(uri):
            with open(absolute(uri), "rb") as source:
                local_files.replace(os.path.abspath(local), source)
            return
        os.makedirs(os.path.dirname(os.path.abspath(local)), exist_ok=True)
        arriving = local_files.arriving(local)
        try:
            object_stores.fetch(*object_stores.open_remote(uri), arriving)
            os.replace(arriving, local)
        finally:
            local_files.delete(arriving)


def open_input(uri: str) -> IO[bytes]:
    """A seekable stream for ranged reads."""
    with explained(uri):
        if is_local(uri):
            return open(absolute(uri), "rb")
        return object_stores.open_ranged(*object_stores.open_remote(uri))


def list_files(uri: str, *, irregular: bool = False) -> list[FileInfo]:
    """The files below `uri`, sorted by name; none where there is no such folder. Unfinished writes are not
    listed, and what is no regular file or cannot be reached only where `irregular` asks for it."""
    with explained(uri):
        if is_local(uri):
            folder = absolute(uri)
            found: Iterable[FileInfo] = (
                _describe_local(folder, path, state)
                for path, state in local_files.walk(folder)
                if state is not None or irregular
            )
        else:
            found = _remote_files(*object_stores.open_remote(uri))
        # here, while what storage answers is explained: they are generators
        files = [file for file in found if not local_files.UNFINISHED.search(file.name)]
    return sorted(files, key=lambda file: file.name)


def matching(pattern: str) -> list[FileInfo]:
    """The files that a glob such as `s3://bucket/day-*/*.mp4` names, irregular ones too, sorted; names are
    relative to the fixed part."""
    with explained(pattern):
        if is_local(pattern):
            path = absolute(pattern)
            root = _fixed_part(path)
            found = [_describe_local(root, *file) for file in local_files.matching(path, root)]
        else:
            fs, path = object_stores.open_remote(pattern)
            root = _fixed_part(path)
            found = [
                _describe(fs, root, name, info)
                for name, info in fs.glob(path, detail=True).items()
                if info["type"] == "file"
            ]
    return sorted(found, key=lambda file: file.name)


def describe(uri: str, *, irregular: bool = False) -> FileInfo | None:
    """One file, named by its last part; None for a folder or where there is nothing, and for what is no
    regular file unless `irregular` asks for it."""
    with explained(uri):
        if is_local(uri):
            path = absolute(uri)
            state, is_file = local_files.look_at(path)
            if is_file and (state or irregular):
                return _describe_local(os.path.dirname(path), path, state)
            return None
        fs, path = object_stores.open_remote(uri)
        info = _info(fs, path)
        if info is None or info["type"] != "file":
            return None
        return _describe(fs, path.rpartition("/")[0] + "/", path, info)


def delete(uri: str) -> None:
    """Removes a file or a folder with all that is in it; nothing there is fine."""
    with explained(uri):
        if is_local(uri):
            local_files.delete(absolute(uri))
        else:
            object_stores.delete(*object_stores.open_remote(uri))


def sweep(uri: str, *, older_than_seconds: float = SWEEP_AFTER_SECONDS) -> int:
    """Removes what writers that were killed left unfinished below `uri`; gives how many there were."""
    with explained(uri):
        if is_local(uri):
            return local_files.sweep(absolute(uri), older_than_seconds=older_than_seconds)
        return object_stores.sweep(*object_stores.open_remote(uri), older_than_seconds=older_than_seconds)


def _info(fs: "AbstractFileSystem", path: str) -> dict[str, Any] | None:
    """Asked so that a store in trouble is never taken for one where nothing is."""
    try:
        return cast(dict[str, Any], fs.info(path))
    except FileNotFoundError:
        return None


def _describe_local(folder: str, path: str, state: os.stat_result | None) -> FileInfo:
    """A name that is not UTF-8 could be written nowhere: such a file goes by a `file://` URI, and by a name
    with the bytes escaped."""
    name, whole = os.fsencode(path.removeprefix(folder.rstrip("/") + "/")), os.fsencode(path)
    try:
        uri = whole.decode()
    except UnicodeDecodeError:
        uri = file_uri(path)
    size, modified = (state.st_size, str(state.st_mtime)) if state else (0, "")
    return FileInfo(uri, name.decode(errors="backslashreplace"), size, modified)


def _remote_files(fs: "AbstractFileSystem", folder: str) -> Iterator[FileInfo]:
    root = folder.rstrip("/") + "/"
    for name, info in fs.find(folder, detail=True).items():
        if name.startswith(root) and not name.endswith("/"):  # what some tools put where a folder is meant
            yield _describe(fs, root, name, info)


def _fixed_part(pattern: str) -> str:
    """The folder, with its slash, that all lies in that a glob can name."""
    first = min(pattern.find(sign) for sign in "*?[" if sign in pattern)
    return pattern[:first].rpartition("/")[0].rstrip("/") + "/"


def _describe(fs: "AbstractFileSystem", root: str, name: str, info: dict[str, Any]) -> FileInfo:
    modified = info.get("mtime") or info.get("ETag") or info.get("LastModified") or ""
    return FileInfo(
        uri=fs.unstrip_protocol(name),
        name=name.removeprefix(root),
        size=int(info["size"]),
        modified=str(modified),
    )


@contextlib.contextmanager
def _full_disk_named(local: str) -> Iterator[None]:
    """It is the near end of a copy whose disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or local
        raise
