"""Which processes a test has started, and whether they are gone when it is done."""

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator

import psutil

PR_SET_CHILD_SUBREAPER = 36
LEAVING_SECONDS = 120.0
"""Within this time the daemons and workers of Ray notice that their driver is gone, on a busy machine too."""


@contextlib.contextmanager
def none_left_behind() -> Iterator[None]:
    """Fails where a process that began inside the block is still there some time after it; ends it, too.

    Inside the block this process adopts every orphan among its descendants, so that nothing hides by
    outliving its parent.
    """
    before = set(psutil.Process().children(recursive=True))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
        deadline = time.monotonic() + LEAVING_SECONDS
        while (left := _living(before)) and time.monotonic() < deadline:
            _bury(before)
            time.sleep(0.1)
        names = [described(one) for one in left]
    finally:
        for one in _living(before):
            kill(one)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)
        _bury(before)
    assert not names, f"left behind: {names}"


def family(pid: int) -> list[psutil.Process]:
    """The living descendants of a process."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [one for one in found if not _is_dead(one)]


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def most_held_bytes(process: subprocess.Popen[bytes]) -> int:
    """By it and its descendants at a time, until it ends; it never outlives this call."""
    most = 0
    try:
        while process.poll() is None:
            most = max(most, held_bytes(process.pid))
            time.sleep(0.5)
    finally:
        process.kill()
    return most


def held_bytes(pid: int) -> int:
    """Of a process and its descendants; a page that several share is shared out among them."""
    held = 0
    for one in (psutil.Process(pid), *family(pid)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            held += one.memory_full_info().pss
    return held


def words_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline())
    return ""


def described(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        age = time.time() - process.create_time()
        return f"{words_of(process).strip()} ({age:.0f} s old, {process.status()}, below {process.ppid()})"
    return f"{process.pid}, gone by now"


def _living(before: set[psutil.Process]) -> list[psutil.Process]:
    return [one for one in family(os.getpid()) if one not in before]


def _is_dead(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def _bury(before: set[psutil.Process]) -> None:
    """The adopted dead: nobody else asks how they ended.

    Until then the operating system still knows their ids, and an idle Ray worker, which asks whether its
    raylet's id is known, stays for a raylet that is dead.
    """
    for one in psutil.Process().children():
        if one not in before:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one.pid, os.WNOHANG)
