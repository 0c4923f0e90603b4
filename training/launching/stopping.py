"""A wish to stop, heard by one worker and agreed by all at a step boundary.

It comes as one of the signals of `infra.signals`, or, where a launcher stands between the signal and the
workers, as a file. Two other wishes are heard here, which save the state and stop nothing: a notice that a
machine will be taken away, and a launcher's file before it ends the group to start a larger one.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from infra import storage
from infra.signals import FirstSignal, heard_by

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ASK_SECONDS = 5.0


class StopRequest:
    def __init__(
        self,
        file: str | None = None,
        *,
        save_file: str | None = None,
        preempted: Callable[[], Collection[str]] | None = None,
    ) -> None:
        """`preempted`: the machines that are about to be taken away, answered to all workers alike."""
        self._file = file
        self._save_file = save_file
        self._signal = FirstSignal(_tell)
        self._preempted = preempted
        self._last_asked = time.monotonic()
        self._noticed: set[str] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals ask for a stop; a second one exits at once. Only the main thread hears them."""
        with heard_by(self._signal.hear):
            yield

    def ask(self) -> None:
        """As if a signal had come."""
        self._signal.count_as_come()

    def is_wanted(self) -> bool:
        return self._signal.has_come or (self._file is not None and os.path.exists(self._file))

    def is_save_wanted(self) -> bool:
        return self._save_file is not None and os.path.exists(self._save_file)

    def tell_saved(self) -> None:
        """To the launcher that waits for it."""
        if self._save_file is not None:
            storage.delete(self._save_file)

    @property
    def is_heard_here(self) -> bool:
        """Whether signals reach this worker itself: no launcher of ours stands between, which would speak."""
        return self._file is None

    def is_time_to_ask(self) -> bool:
        """Whether this worker finds that all should ask `is_preempted`, which takes a while."""
        return self._preempted is not None and time.monotonic() - self._last_asked > ASK_SECONDS

    def is_preempted(self) -> bool:
        """True once for each machine. All workers must ask together, once any found that it is time."""
        self._last_asked = time.monotonic()
        going = set(self._preempted() if self._preempted else ())
        are_new = not going <= self._noticed
        self._noticed |= going
        return are_new


def _tell() -> None:
    sys.stderr.write("stopping at the end of this step, once it is saved; a second signal exits at once\n")


def die_with_parent() -> None:
    """Asks Linux to kill this process once its parent is gone: no orphan writes into a resumed run."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def wish_file(path: str | None) -> Iterator[None]:
    """The file by which a launcher may say what it wants: gone once the block is left."""
    try:
        yield
    finally:
        if path is not None:
            storage.delete(path)
