"""Sends things away in a thread, whenever there are new ones. Nobody waits for it before the end, nor then
for longer than was said."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import TypeVar

from infra.errors import ReelgptError
from training.saving.background import in_background

RETRY_SECONDS = 15.0
Answer = TypeVar("Answer")


def within(seconds: float, ask: Callable[[], Answer], *, since: Callable[[], float]) -> Answer:
    """What `ask` answers. Raises TimeoutError where it takes so long from now, and from the last sign of life
    that `since` knows of; its thread does not keep the process."""
    began, answer = time.monotonic(), in_background(ask)
    while not answer.done():
        left = max(began, since()) + seconds - time.monotonic()
        if left <= 0:
            raise TimeoutError
        wait([answer], timeout=left)
    return answer.result()


class Sending:
    """Calls `send` again and again; what it refuses is said once, and tried again until it is taken."""

    def __init__(
        self,
        send: Callable[[], None],
        *,
        on_trouble: Callable[[ReelgptError], None],
        retry_seconds: float | None = None,
    ) -> None:
        self._send = send
        self._on_trouble = on_trouble
        self._retry_seconds = RETRY_SECONDS if retry_seconds is None else retry_seconds
        self._is_behind = False
        self._news = threading.Event()
        self._ending = threading.Event()
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._news.set()

    def wait_for_first_try(self, seconds: float) -> bool:
        """Until `send` has been through once, however it ended; False where that takes longer."""
        return self._tried.wait(seconds)

    def end(self, seconds: float) -> None:
        """Lets it send, or try to send, the last; waits for that so long at most."""
        self._ending.set()
        self._news.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ending.is_set()  # before it sends: what comes meanwhile is another turn's
            self._news.clear()
            try:
                self._try()
            finally:
                self._tried.set()
            if not is_last:
                self._rest()

    def _try(self) -> None:
        try:
            self._send()
            self._is_behind = False
        except ReelgptError as error:
            if not self._is_behind:
                self._on_trouble(error)
            self._is_behind = True

    def _rest(self) -> None:
        if self._is_behind:
            self._ending.wait(self._retry_seconds)
        else:
            self._news.wait()
