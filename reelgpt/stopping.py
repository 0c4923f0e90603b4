"""A signal while a command works: it ends in order, and says that it can be repeated."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from infra.errors import Stopped
from infra.signals import STDERR, FirstSignal, heard_by, leave_closed_terminal


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the signals leave as Stopped, once what the block holds is given back; a second signal exits at
    once. Only the main thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with heard_by(FirstSignal(_interrupt).hear):
        try:
            yield
        except KeyboardInterrupt:
            raise Stopped(
                "stopped by a signal; every row that was done is kept: repeat the command to go on"
            ) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, a signal that no command listens for leaves as KeyboardInterrupt, with its number unless it is
    Ctrl-C's."""
    ours = os.getpid()

    def hear(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # which a second one gets
        if os.getpid() != ours:  # a worker that was forked ends as ever
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            leave_closed_terminal()
            raise KeyboardInterrupt(number)

    with heard_by(hear):
        yield


def _interrupt() -> None:
    os.write(STDERR, b"stopping; a second signal exits at once\n")
    raise KeyboardInterrupt  # which nobody on the way takes for a failure
