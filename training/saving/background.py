"""Work beside the steps, in a thread: what it failed with surfaces when it is asked for."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """One piece of work, begun at once.

    No executor: an executor's threads would hold up the end of a process that has failed at something else.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._answer: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> Result:
        """Waits for it, and raises what the work raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def _run(self) -> None:
        try:
            self._answer.append(self._work())
        except BaseException as error:  # noqa: BLE001 - whoever asks gets it
            self._error = error
