"""Before the workers have met: what one of them refuses ends them all; a signal ends this one at once, as
there is nothing to save, and nobody to ask.

A worker that waits for others waits in torch's own code, where Python hears no signal: Slurm's SIGTERM, or a
Ctrl-C, would be heeded once the others come, which they never do where one was killed.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from infra.errors import Stopped
from infra.signals import STOPPING, heard_by
from training.launching import announced

GRACE_SECONDS = 1.0
"""For Python to hear the signal itself, and to leave in order."""
STOPPED = "stopped before the first step; repeat the command to go on"


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, a signal raises Stopped, or ends the process where it cannot. Only the main thread hears it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    is_left = threading.Event()
    threading.Thread(target=_end, args=(reader, is_left), daemon=True).start()
    before = signal.set_wakeup_fd(writer)  # written to by the signal itself, whatever Python waits for
    try:
        with heard_by(_raise):
            yield
    finally:
        is_left.set()
        signal.set_wakeup_fd(before)
        os.close(writer)


@contextmanager
def refusals_told() -> Iterator[None]:
    """Inside, what this worker meets alone is the end of the others, too, who wait for it where they meet."""
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        if announced.looks_after_itself():
            with contextlib.suppress(Stopped), ended_by_signals():
                from training.engine.rendezvous import decline

                decline(error)
        raise


def _raise(_: int, __: FrameType | None) -> None:
    raise Stopped(STOPPED)


def _end(reader: int, is_left: threading.Event) -> None:
    while number := os.read(reader, 1):
        if number[0] in STOPPING and not is_left.wait(GRACE_SECONDS):
            sys.stderr.write(f"error: {STOPPED}\n")
            sys.stderr.flush()
            os._exit(Stopped.exit_code)
    os.close(reader)
