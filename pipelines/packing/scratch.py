"""A temporary folder for a file a shard, as many as it takes, and what is said where it has no room."""

import contextlib
import errno
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from infra.errors import StorageError
from infra.file_locks import locked

MORE_ROOM = "set TMPDIR to a folder with room for all clips that are kept, and repeat the command"
PREFIX = "reelgpt-pack-"
YOUNG_SECONDS = 60.0
"""A folder of this age may be another's that is not locked yet."""
FEWER_FILES = "raise the limit (`ulimit -n`) or --pack.shard-bytes, and repeat the command"


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """In TMPDIR; gone after the block, or, where a kill ended that, when the next one is made. Raises
    StorageError where none can be made."""
    with contextlib.ExitStack() as stack:
        with explained(os.environ.get("TMPDIR", "/tmp")):  # noqa: S108 - its name, for the sentence
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX))
            stack.enter_context(locked(made, waits=False))
            _sweep(Path(made).parent)
        yield made


def _sweep(parent: Path) -> None:
    """Removes what killed processes left; not what is another user's, or in use."""
    for left in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > YOUNG_SECONDS:
                with locked(left, waits=False):
                    shutil.rmtree(left)


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Inside, as many files may be open as this process can allow itself: every shard has one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turns what the system raises when one writes to `place` into StorageError."""
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        remedy = FEWER_FILES if error.errno in (errno.EMFILE, errno.ENFILE) else MORE_ROOM
        raise StorageError(f"clips cannot be sorted into shards in {place}: {what}; {remedy}") from None
