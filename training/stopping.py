"""A wish to stop, heard by one worker and agreed by all at a step boundary.

It comes as SIGTERM or SIGINT; where a launcher stands between the signal and the workers, as a file; or as a
notice that the machine will be taken away.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from infra import storage

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ASK_SECONDS = 5.0
ECHO_SECONDS = 1.0
"""A terminal's Ctrl-C reaches a worker directly and once more through its launcher: that is one signal."""


class StopRequest:
    def __init__(self, file: str | None = None, *, preempted: Callable[[], bool] | None = None) -> None:
        """`preempted`: whether the machine is about to be taken away, answered to all workers alike."""
        self._file = file
        self._first_signal: float | None = None
        self._preempted = preempted
        self._last_asked = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals ask for a stop; a second one exits at once. Only the main thread hears them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask(self) -> None:
        """As if a signal had come."""
        self._first_signal = time.monotonic()

    def is_wanted(self) -> bool:
        return self._first_signal is not None or (self._file is not None and os.path.exists(self._file))

    @property
    def is_heard_here(self) -> bool:
        """Whether signals reach this worker itself: no launcher of ours stands between, which would speak."""
        return self._file is None

    def is_time_to_ask(self) -> bool:
        """Whether this worker finds that all should ask `is_preempted`, which takes a while."""
        return self._preempted is not None and time.monotonic() - self._last_asked > ASK_SECONDS

    def is_preempted(self) -> bool:
        """All workers must ask together, once any of them found that it is time."""
        self._last_asked = time.monotonic()
        return self._preempted is not None and self._preempted()

    def _hear(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
            sys.stderr.write(
                "stopping at the end of this step, once it is saved; a second signal exits at once\n"
            )
        elif now - self._first_signal > ECHO_SECONDS:
            os._exit(128 + number)


def die_with_parent() -> None:
    """Asks Linux to kill this process once its parent is gone: no orphan writes into a resumed run."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def stop_file(path: str | None) -> Iterator[None]:
    """A launcher's file, gone once the block is left."""
    try:
        yield
    finally:
        if path is not None:
            storage.delete(path)
