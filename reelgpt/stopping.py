"""A signal while a shard set is built: the command ends in order, and says that it can be repeated."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import Stopped
from infra.signals import FirstSignal, heard_by

STDERR = 2


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT leave as Stopped, once what the block holds is given back; a second signal
    exits at once. Only the main thread hears them."""
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


def _interrupt() -> None:
    os.write(STDERR, b"stopping; a second signal exits at once\n")
    raise KeyboardInterrupt  # which nobody on the way takes for a failure
