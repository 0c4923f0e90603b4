"""What storage answers, as one sentence with the remedy.

Knows the errors of file systems and the error codes of S3, whichever library raised them. A passing trouble
reaches this room only once the patience of `infra.object_stores` is spent.
"""

import contextlib
import errno
import sys
from collections.abc import Iterator

from infra.errors import ReelgptError, StorageError, UsageError

CREDENTIALS = "the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
REGION = "set AWS_DEFAULT_REGION to the region of the bucket"
LATER = "repeat the command once it has recovered; with fewer workers it is asked less"

REFUSALS = {
    "InvalidAccessKeyId": ("the store does not know this access key", f"check {CREDENTIALS}"),
    "SignatureDoesNotMatch": ("the secret key is not that of the access key", f"check {CREDENTIALS}"),
    "ExpiredToken": ("the credentials have expired", "fetch new ones and repeat the command"),
    "InvalidToken": ("the session token is not valid", "fetch new credentials and repeat the command"),
    "TokenRefreshRequired": ("the credentials have expired", "fetch new ones and repeat the command"),
    "AccessDenied": ("access is refused", f"check {CREDENTIALS} and what they may do"),
    "403": ("access is refused", f"check {CREDENTIALS} and what they may do"),
    "AllAccessDisabled": ("access is refused to everybody", "ask who owns the bucket"),
    "NoSuchBucket": ("there is no such bucket", "make it, or correct the name or AWS_ENDPOINT_URL"),
    "InvalidBucketName": ("no bucket can be called so", "correct the name"),
    "PermanentRedirect": ("the bucket is in another region", REGION),
    "301": ("the bucket is in another region", REGION),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", REGION),
    "IllegalLocationConstraintException": ("the bucket is in another region", REGION),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set it"),
    **dict.fromkeys(
        ("SlowDown", "ServiceUnavailable", "503", "429", "TooManyRequests", "Throttling"),
        ("the store is overloaded, and stayed so however often it was asked", LATER),
    ),
    **dict.fromkeys(
        ("InternalError", "500", "502", "504", "RequestTimeout"),
        ("the store failed, however often it was asked", LATER),
    ),
}  # fmt: skip
"""By error code of S3: what is the matter, and the remedy."""

FULL = {
    errno.ENOSPC: "no space is left there",
    errno.EDQUOT: "the quota there is used up",
    errno.EFBIG: "a file may not become that large there",
}
UNMENDABLE = {
    errno.EROFS: "it cannot be written to",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its symbolic links lead in a circle",
}


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns what storage raises at `uri` into StorageError or UsageError."""
    try:
        yield
    except _explainable() as error:
        raise _as_sentence(uri, error) from None


def error_code(error: BaseException) -> str | None:
    """S3's word for what went wrong; s3fs raises errors of Python's, and keeps botocore's as the cause."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return str(code) if code else None
    return None


def _as_sentence(uri: str, error: Exception) -> ReelgptError:
    code = error_code(error)
    if code in REFUSALS:
        what, remedy = REFUSALS[code]
        return StorageError(f"{uri}: {what} ({code}); {remedy}")
    if isinstance(error, OSError):
        return _of_a_system_call(uri, error)
    if isinstance(error, ImportError):
        return StorageError(f"{uri} cannot be opened: {error} (`pip install -e '.[s3]'` brings s3)")
    if isinstance(error, ValueError):
        return StorageError(f"{uri} cannot be opened: {error}")
    return _of_a_library(uri, error)


def _of_a_system_call(uri: str, error: OSError) -> ReelgptError:
    place = error.filename if error.errno in FULL and isinstance(error.filename, str) else uri
    if error.errno in FULL:
        return StorageError(
            f"{place} cannot be written: {FULL[error.errno]}; free some, or give another place"
        )
    if error.errno in UNMENDABLE:
        return UsageError(f"{uri} cannot be used: {UNMENDABLE[error.errno]}; give another place")
    if isinstance(error, FileNotFoundError):
        return StorageError(f"there is nothing at {uri}; check the name")
    if isinstance(error, PermissionError):
        return StorageError(f"access to {uri} is refused ({error}); check the permissions or credentials")
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return UsageError(f"{uri} cannot be read or written: {error}; give another place")
    return StorageError(f"{uri} cannot be reached: {error}; repeat the command once storage answers")


def _of_a_library(uri: str, error: Exception) -> StorageError:
    kind = type(error).__name__
    if kind in (
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
    ):
        return StorageError(
            f"{uri}: there are no credentials for it ({error}); give {CREDENTIALS}, "
            f"or FSSPEC_S3_ANON=true for a bucket that is open to all"
        )
    return StorageError(
        f"{uri} cannot be reached: {error or kind}; check the network and AWS_ENDPOINT_URL, "
        f"and repeat the command"
    )


def _explainable() -> tuple[type[Exception], ...]:
    """What S3's client raises beside Python's own is known once it was imported."""
    found: list[type[Exception]] = [OSError, ValueError, ImportError]
    if botocore := sys.modules.get("botocore.exceptions"):
        found += [botocore.BotoCoreError, botocore.ClientError]
    if aiohttp := sys.modules.get("aiohttp"):
        found.append(aiohttp.ClientError)
    return tuple(found)
