"""A wish to stop, heard by one worker and agreed by all at a step boundary.

It comes as SIGTERM or SIGINT, or, where a launcher stands between the signal and the workers, as a file.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from training.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ECHO_SECONDS = 1.0
"""A terminal's Ctrl-C reaches a worker directly and once more through its launcher: that is one signal."""


class StopRequest:
    def __init__(self, file: str | None = None) -> None:
        self._file = file
        self._first_signal: float | None = None

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

    def is_wanted(self) -> bool:
        return self._first_signal is not None or (self._file is not None and os.path.exists(self._file))

    def is_agreed(self, ranks: Ranks) -> bool:
        """Whether any rank wants to stop. All ranks must ask together."""
        return ranks.sum([float(self.is_wanted())])[0] > 0

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
