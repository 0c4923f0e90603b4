"""The remote side of storage, through fsspec: S3 above all, with patience where it passes and none where not.

Each request is repeated by botocore (throttling, resets, timeouts, 5xx), for half a minute or so; a body that
breaks off is read again here, where botocore does not look. A store is given seconds for its first answer,
so that a wrong endpoint, bucket or key is a sentence and no wait. Listings are never answered from a cache.
"""

import contextlib
import functools
import http.client
import io
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from infra.seekable import Seekable
from infra.storage_errors import error_code

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem

Result = TypeVar("Result")

CHAIN = re.compile(r"^[a-z0-9+]+::|::[a-z0-9+]+://")
"""fsspec's way to look into archives or caches; `::` anywhere else is part of a name."""
REQUEST_ATTEMPTS = 7
"""Of botocore, with pauses of up to 1, 2, 4, ... 32 s: half a minute on average."""
CONNECT_SECONDS = 5
SILENCE_SECONDS = 15
"""How long an open connection may say nothing."""
FIRST_ANSWER_SECONDS = 5.0
BODY_PATIENCE_SECONDS = 60.0
READ_AHEAD_BYTES = 1 << 18
KEYS_A_REQUEST = 1000  # S3's own limit
SETTLE_SECONDS = 2.0
"""Where a store cannot say who was first: how long all who want to be are waited for."""
ONE_PUT_BYTES = 100 << 20
"""What is larger, s3fs puts in parts; SeaweedFS tells several racers that theirs were put together first."""
TAKEN = ("PreconditionFailed", "412")
UNDECIDED = ("ConditionalRequestConflict", "409", "OperationAborted")
"""AWS, while another conditional write of the same name is under way."""

_HONOURS_CONDITIONS: dict[tuple["AbstractFileSystem", str], bool] = {}
"""Of each bucket that this process has created something in: whether a put under the condition that nothing
is there is refused where something is. AWS, SeaweedFS, MinIO and R2 do; others may take no notice."""


def open_remote(uri: str) -> tuple["AbstractFileSystem", str]:
    """The file system of a URI, which has answered before or does now, and the path in it."""
    from fsspec import filesystem
    from fsspec.core import url_to_fs

    scheme = uri.partition("://")[0]
    if CHAIN.search(uri):
        return cast(tuple["AbstractFileSystem", str], url_to_fs(uri))
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("s3", "s3a"):
        options["config_kwargs"] = _request_settings()
    fs = filesystem(scheme, **options)
    path = str(fs._strip_protocol(uri))
    if scheme in ("s3", "s3a"):
        fs.retries = 1  # beside botocore's, s3fs's own would multiply them
        _meet(fs, path.partition("/")[0])
    return fs, path


def read(fs: "AbstractFileSystem", path: str, start: int | None = None, end: int | None = None) -> bytes:
    return _whole(lambda: cast(bytes, fs.cat_file(path, start=start, end=end)))


def open_ranged(fs: "AbstractFileSystem", path: str) -> IO[bytes]:
    """A seekable stream that asks for the bytes it is asked for, and a little ahead."""
    return io.BufferedReader(_Ranges(fs, path, int(fs.info(path)["size"])), READ_AHEAD_BYTES)


def fetch(fs: "AbstractFileSystem", path: str, local_path: str) -> None:
    """Copies to `local_path`, whole or not at all."""

    def get() -> None:
        fs.get_file(path, local_path)

    _whole(get)


def create(fs: "AbstractFileSystem", path: str, data: bytes) -> bool:
    """Puts `data` at `path` if nothing is there; one of two racers wins. The same bytes there count as ours:
    the answer to a put may be lost, and the put repeated."""
    store, is_one_put = (fs, path.partition("/")[0]), len(data) < ONE_PUT_BYTES
    if is_one_put and _HONOURS_CONDITIONS.get(store):
        return _put_if_absent(fs, path, data) or _is_there(fs, path, data)
    if fs.exists(path) or not _put_if_absent(fs, path, data):
        return _is_there(fs, path, data)
    if store not in _HONOURS_CONDITIONS:
        _HONOURS_CONDITIONS[store] = not _put_if_absent(fs, path, data)
        if not _HONOURS_CONDITIONS[store]:
            sys.stderr.write(
                f"{store[1]} does not say who was first: {SETTLE_SECONDS:g} s are waited for others\n"
            )
    if is_one_put and _HONOURS_CONDITIONS[store]:
        return True
    time.sleep(SETTLE_SECONDS)
    return _is_there(fs, path, data)


def delete(fs: "AbstractFileSystem", path: str) -> None:
    """Removes the file `path` and all below it. fsspec's own way would take `*` in a name for a pattern."""
    names = sorted({path, *fs.find(path)})
    if "s3" not in fs.protocol:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(name)
        return
    for start in range(0, len(names), KEYS_A_REQUEST):
        keys = [{"Key": name.partition("/")[2]} for name in names[start : start + KEYS_A_REQUEST]]
        answer = fs.call_s3(
            "delete_objects", Bucket=path.partition("/")[0], Delete={"Objects": keys, "Quiet": True}
        )
        if refused := answer.get("Errors"):
            raise OSError(f"{len(refused)} of {len(keys)} files stay: {refused[0].get('Message')}")


def sweep(fs: "AbstractFileSystem", path: str, *, older_than_seconds: float) -> int:
    """Ends the uploads in parts below `path` that killed writers left, and that a store keeps and bills."""
    if "s3" not in fs.protocol:
        return 0
    bucket, _, prefix = path.partition("/")
    limit = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix and f"{prefix}/").get(
        "Uploads", []
    )
    old = [upload for upload in found if upload["Initiated"] < limit]
    for upload in old:
        with contextlib.suppress(FileNotFoundError):  # ended meanwhile
            fs.call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
    return len(old)


class _Ranges(Seekable):
    def __init__(self, fs: "AbstractFileSystem", path: str, size: int) -> None:
        super().__init__(size)
        self._fs, self._path = fs, path

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, super().seek(offset, whence))
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        start, end = self._position, min(self._position + len(view), self._size)
        if end <= start:
            return 0
        data = read(self._fs, self._path, start, end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes came of the {end - start} from {start} on: it has changed")
        view[: len(data)] = data
        self._position = end
        return len(data)


def _request_settings() -> dict[str, Any]:
    """What the user set in fsspec's config or in AWS's variables stays."""
    from fsspec.config import conf

    settings: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENCE_SECONDS}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        # "standard" would not repeat what was answered with 429
        settings["retries"] = {"mode": "legacy", "total_max_attempts": REQUEST_ATTEMPTS}
    users: dict[str, Any] = conf.get("s3", {}).get("config_kwargs", {})
    return settings | users


@functools.cache
def _meet(fs: "AbstractFileSystem", bucket: str) -> None:
    """Once a process: whether the endpoint answers, knows the keys, and has the bucket. Some stores make a
    bucket that is written to; a misspelt one must not come to be so."""
    _require_answer(fs.s3.meta.endpoint_url)
    if not bucket:
        return
    try:
        fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except PermissionError as error:
        if error_code(error) not in ("AccessDenied", "403"):  # to list may be refused, and to read not
            raise


def _require_answer(endpoint: str) -> None:
    """Any answer will do. Raises OSError where none comes within FIRST_ANSWER_SECONDS."""
    deadline = time.monotonic() + FIRST_ANSWER_SECONDS
    ask = urllib.request.build_opener(_NoRedirects)
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the user's own endpoint
    while True:
        try:
            ask.open(request, timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except urllib.error.HTTPError:
            return
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                return  # botocore has certificates of its own, and says more
            if time.monotonic() + 0.5 > deadline:
                raise OSError(f"no answer from {endpoint} ({reason}); check AWS_ENDPOINT_URL") from None
        time.sleep(0.5)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _whole(attempt: Callable[[], Result]) -> Result:
    """What `attempt` reads, once it arrives whole; a body that breaks off is asked for again."""
    deadline, pause = time.monotonic() + BODY_PATIENCE_SECONDS, 0.2
    while True:
        try:
            return attempt()
        except Exception as error:
            if not _breaks_off(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause *= 2


def _breaks_off(error: Exception) -> bool:
    """Whether it is the stream that failed, after the store had begun to answer."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ClientPayloadError", "IncompleteRead", "IncompleteReadError", "HTTPClientError"})


def _put_if_absent(fs: "AbstractFileSystem", path: str, data: bytes) -> bool:
    deadline = time.monotonic() + BODY_PATIENCE_SECONDS
    while True:
        try:
            fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except OSError as error:
            code = error_code(error)
            if code in TAKEN:
                return False
            if code not in UNDECIDED or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _is_there(fs: "AbstractFileSystem", path: str, data: bytes) -> bool:
    try:
        return read(fs, path) == data
    except FileNotFoundError:  # the other's, and gone again
        return False
