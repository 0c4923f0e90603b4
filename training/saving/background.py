"""Work beside the steps, in a thread: what it failed with surfaces when it is asked for."""

import _thread
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Begins at once, in a thread of its own that does not keep the process: an executor's would hold up the
    end of one that has failed at something else. `threading` would wait until the thread has begun, a
    millisecond where others want the interpreter."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever asks gets it
            future.set_exception(error)

    _thread.start_new_thread(run, ())
    return future
