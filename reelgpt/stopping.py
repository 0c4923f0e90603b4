"""A signal while a shard set is built: the command ends in order, and says that it can be repeated."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from infra.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 1.0
"""A terminal's Ctrl-C may reach the command once more through whoever started it: that is one signal."""
STDERR = 2


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT leave as Stopped, once what the block holds is given back; a second signal
    exits at once. Only the main thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def hear(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            os.write(STDERR, b"stopping; a second signal exits at once\n")
            raise KeyboardInterrupt  # which nobody on the way takes for a failure
        if now - first[0] > ECHO_SECONDS:
            os._exit(128 + number)

    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(
            "stopped by a signal; every row that was done is kept: repeat the command to go on"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
