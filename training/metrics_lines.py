"""The lines of metrics.jsonl: one record a step, whole once it ends in a newline."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from infra.errors import TrainingError
from infra.storage_errors import explained


def read_lines(path: str) -> Iterator[dict[str, float]]:
    """The whole lines of a metrics file; a kill can leave the last one cut off. Raises TrainingError where
    another is damaged."""
    with explained(path):
        yield from Tail(path).new_lines()


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
                yield _parsed(raw, self._path)


def _parsed(raw: bytes, path: str) -> dict[str, float]:
    """A whole line of the metrics file at `path`. Raises TrainingError where it was changed since."""
    with contextlib.suppress(ValueError):
        line: Any = json.loads(raw)
        if isinstance(line, dict) and "step" in line and all(map(_is_number, line.values())):
            return line
    raise TrainingError(
        f"{path} has a line that is no record of a step: {raw[:40]!r}; it was changed after it was written: "
        f"delete that line, and repeat the command"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _id_and_size(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_size
