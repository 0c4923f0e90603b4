"""What a person watches while a command works: progress on stderr, so that stdout holds the result alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bar:
    """One line of progress, shown from its first update on; a total that is not known yet may come later."""

    def __init__(self, progress: Progress, description: str, total: float | None) -> None:
        self._progress = progress
        self._description = description
        self._total = total
        self._task: TaskID | None = None

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        self._progress.update(self._shown(), completed=completed, total=total, note=note)

    def _shown(self) -> TaskID:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._description, total=self._total, note="")
        return self._task


@cache
def console() -> Console:
    return Console(stderr=True, highlight=False)


@contextmanager
def track(description: str, total: float | None = None) -> Iterator[Bar]:
    """Shows a bar while the block works; where stderr is no terminal, its last state as one line.

    A block that is refused before its first update shows nothing.
    """
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=console(), auto_refresh=console().is_terminal)
    try:
        yield Bar(progress, description, total)
    finally:
        if progress.tasks:
            progress.stop()
