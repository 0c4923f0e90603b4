"""Reads metrics.jsonl along while it grows, wherever the workers are, and tells of every new line."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from infra.errors import TrainingError
from training.metrics_lines import Tail

OnMetrics = Callable[[dict[str, float]], None]

POLL_SECONDS = 0.2


@contextmanager
def followed(path: str, on_metrics: OnMetrics | None, *, resumed_step: int) -> Iterator[None]:
    """Inside, a thread hears of every step after `resumed_step`, once; what is there already is not new."""
    if on_metrics is None:
        yield
        return
    ended = threading.Event()
    follower = Follower(path, resumed_step=resumed_step)
    thread = threading.Thread(target=_follow, args=(follower, on_metrics, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(follower: "Follower", on_metrics: OnMetrics, ended: threading.Event) -> None:
    is_last_look = False
    while not is_last_look:
        is_last_look = ended.wait(POLL_SECONDS)
        try:
            for line in follower.new_lines():
                on_metrics(line)
        except TrainingError as error:  # of a line; those after it are told at the next look
            sys.stderr.write(f"{error}\n")


class Follower:
    """Hears of what comes into a file from now on."""

    def __init__(self, path: str, *, resumed_step: int) -> None:
        self._last_step: float = resumed_step
        self._tail = Tail(path, begins_at_end=True)

    def new_lines(self) -> Iterator[dict[str, float]]:
        """The whole lines since the last call, without steps that were told before."""
        for line in self._tail.new_lines():
            if line["step"] > self._last_step:
                self._last_step = line["step"]
                yield line
