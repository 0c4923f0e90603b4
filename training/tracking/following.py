"""Reads metrics.jsonl along while it grows, wherever the workers are, and tells of every new line."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from infra.errors import TrainingError

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


class Tail:
    """Keeps its place in a file that grows. A resume puts a new file there, which is read from its start."""

    def __init__(self, path: str, *, begins_at_end: bool = False) -> None:
        self._path = path
        self._file_id, self._offset = _id_and_size(path) if begins_at_end else (0, 0)

    def new_lines(self) -> Iterator[dict[str, float]]:
        """The whole lines since the last call."""
        file_id, size = _id_and_size(self._path)
        if file_id != self._file_id:
            self._file_id, self._offset = file_id, 0
        if size <= self._offset:
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self._offset += len(raw)
                yield parsed(raw, self._path)


def parsed(raw: bytes, path: str) -> dict[str, float]:
    """A whole line of the metrics file at `path`. Raises TrainingError where it was changed since."""
    with contextlib.suppress(ValueError):
        line: Any = json.loads(raw)
        if isinstance(line, dict) and "step" in line:
            return line
    raise TrainingError(
        f"{path} has a line that is no record of a step: {raw[:40]!r}; it was changed after it was written: "
        f"delete that line, and repeat the command"
    )


def _id_and_size(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_size
