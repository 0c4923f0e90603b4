"""Files by URI, local or remote, through fsspec: every write is complete or absent.

Knows how to commit atomically on a file system (temporary name, fsync, rename) and on an object store (a
single put), and how to turn what storage answers into one clear sentence. What the files mean is others'
matter.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from infra.errors import StorageError, UsageError


@dataclass(frozen=True, slots=True)
class FileInfo:
    uri: str
    name: str
    """Path relative to the listed folder, with forward slashes."""
    size: int
    modified: str
    """What storage says of its last change: good to notice a change, never part of an identity."""


def absolute(uri: str) -> str:
    """`uri` such that it means the same from any working directory; remote URIs stay as they are."""
    if not is_local(uri):
        return uri
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *names: str) -> str:
    return "/".join([uri.rstrip("/") if uri != "/" else "", *names])


def exists(uri: str) -> bool:
    with _explained(uri):
        fs, path = _open(uri)
        return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    with _explained(uri):
        fs, path = _open(uri)
        return cast(bytes, fs.cat_file(path))


def read_json(uri: str) -> Any:
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(
            f"{uri} is not JSON ({error}); it was cut off or changed after it was written"
        ) from None


def write(uri: str, data: bytes | memoryview) -> None:
    """Puts `data` at `uri`, complete or absent, replacing what is there."""
    with _explained(uri):
        fs, path = _open(uri)
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, bytes(data))
            return
        with _temporary(path) as temporary:
            os.replace(temporary(io.BytesIO(data)), path)
            _sync_folder(path)


def write_json(uri: str, value: Any) -> None:
    write(uri, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def create(uri: str, data: bytes) -> bool:
    """Puts `data` at `uri` only if nothing is there. False if something was; one of two racers wins."""
    with _explained(uri):
        fs, path = _open(uri)
        if not isinstance(fs, LocalFileSystem):
            return _create_object(fs, path, data)
        with _temporary(path) as temporary:
            try:
                os.link(temporary(io.BytesIO(data)), path)
            except FileExistsError:
                return False
            _sync_folder(path)
            return True


def upload(local_path: str, uri: str) -> None:
    """Copies a local file to `uri`, complete or absent."""
    with _explained(uri):
        fs, path = _open(uri)
        if not isinstance(fs, LocalFileSystem):
            fs.put_file(local_path, path)
            return
        with open(local_path, "rb") as source, _temporary(path) as temporary:
            os.replace(temporary(source), path)
            _sync_folder(path)


def fetch(uri: str, local_path: str) -> None:
    """Copies the file at `uri` to `local_path`, complete or absent."""
    with _explained(uri):
        fs, path = _open(uri)
        os.makedirs(os.path.dirname(local_path), exist_ok=True)
        arriving = f"{local_path}.{uuid.uuid4().hex}.tmp"
        try:
            fs.get_file(path, arriving)
            os.replace(arriving, local_path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(arriving)


def open_input(uri: str) -> IO[bytes]:
    """A seekable stream for ranged reads."""
    with _explained(uri):
        fs, path = _open(uri)
        return cast(IO[bytes], fs.open(path, "rb"))


def list_files(uri: str) -> list[FileInfo]:
    """The files below `uri`, sorted by name; none where there is no such folder. Unfinished writes are not
    listed."""
    with _explained(uri):
        fs, path = _open(uri)
        fs.invalidate_cache()
        found = fs.find(path, detail=True)
    root = path.rstrip("/") + "/"
    files = [_describe(fs, root, name, info) for name, info in found.items() if not name.endswith(".tmp")]
    return sorted(files, key=lambda file: file.name)


def matching(pattern: str) -> list[FileInfo]:
    """The files that a glob such as `s3://bucket/day-*/*.mp4` names, sorted; names are relative to the fixed
    part."""
    fixed = pattern[: min(pattern.find(sign) for sign in "*?[" if sign in pattern)].rpartition("/")[0]
    with _explained(pattern):
        fs, path = _open(pattern)
        found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
        root = _open(fixed)[1].rstrip("/") + "/"
    return sorted(
        (_describe(fs, root, name, info) for name, info in found.items()), key=lambda file: file.name
    )


def describe(uri: str) -> FileInfo | None:
    """One file, named by its last part; None for a folder or where there is nothing."""
    with _explained(uri):
        fs, path = _open(uri)
        if not fs.isfile(path):
            return None
        return _describe(fs, path.rpartition("/")[0] + "/", path, fs.info(path))


def delete(uri: str) -> None:
    """Removes a file or a folder with all that is in it; nothing there is fine."""
    with _explained(uri):
        fs, path = _open(uri)
        if fs.exists(path):
            fs.rm(path, recursive=True)


def _open(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = url_to_fs(uri)
    return fs, path


def _describe(fs: fsspec.AbstractFileSystem, root: str, name: str, info: dict[str, Any]) -> FileInfo:
    modified = info.get("mtime") or info.get("ETag") or info.get("LastModified") or ""
    uri = name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
    return FileInfo(uri=uri, name=name.removeprefix(root), size=int(info["size"]), modified=str(modified))


def _create_object(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[Callable[[IO[bytes]], str]]:
    """Gives a function that writes and syncs a stream under a name beside `path`, which is gone after."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    arriving = f"{path}.{uuid.uuid4().hex}.tmp"

    def fill(source: IO[bytes]) -> str:
        with open(arriving, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        return arriving

    try:
        yield fill
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(arriving)


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns what storage raises into one sentence with the remedy."""
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"there is nothing at {uri}; check the name") from None
    except PermissionError as error:
        raise StorageError(
            f"access to {uri} is refused ({error}); check the permissions or credentials"
        ) from None
    except ImportError as error:
        raise StorageError(f"{uri} cannot be opened: {error} (`pip install -e '.[s3]'` brings s3)") from None
    except ValueError as error:
        raise StorageError(f"{uri} cannot be opened: {error}") from None
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise UsageError(f"{uri} cannot be read or written: {error}; give another place") from None
    except _errors_of_object_stores() as error:
        raise StorageError(
            f"{uri} cannot be reached: {error}; check the bucket, the endpoint and the credentials"
        ) from None
    except OSError as error:
        raise StorageError(f"{uri} cannot be reached: {error}; try again once storage answers") from None


def _errors_of_object_stores() -> tuple[type[Exception], ...]:
    """What S3's client raises beside OSError; empty until it was imported."""
    botocore = sys.modules.get("botocore.exceptions")
    return (botocore.BotoCoreError, botocore.ClientError) if botocore else ()
