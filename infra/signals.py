"""What asks a process to stop: SIGTERM, SIGINT, SIGHUP, as when a terminal is closed, and SIGUSR1, as Slurm
sends it before the time is up. The first one is told, a second one exits at once."""

import errno
import math
import os
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
ECHO_SECONDS = 1.0
"""A terminal's Ctrl-C may reach a process once more through whoever started it: that is one signal."""
STDOUT, STDERR = 1, 2

Handler = Callable[[int, FrameType | None], None]
Former = Handler | int | signal.Handlers | None


class FirstSignal:
    """`on_first` is called when the first signal comes, in the handler: it may raise."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._came_at: float | None = None

    @property
    def has_come(self) -> bool:
        return self._came_at is not None

    def count_as_come(self) -> None:
        """As if it had, without a word: the next one exits."""
        self._came_at = time.monotonic()

    def hear(self, number: int, _: FrameType | None) -> None:
        if self._came_at is None:
            self._came_at = time.monotonic()
            if number == signal.SIGHUP:
                leave_closed_terminal()
            self._on_first()
        elif time.monotonic() - self._came_at > ECHO_SECONDS:
            os._exit(128 + number)


@contextmanager
def heard_by(handler: Handler) -> Iterator[None]:
    """Inside, `handler` hears the signals; those of before do again after, but for an echo of one that came.

    Only the main thread hears any.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came_at = -math.inf

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal came_at
        came_at = time.monotonic()
        handler(number, frame)

    before = {number: signal.signal(number, hear) for number in _heard()}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, _without_echo(former, came_at))


@contextmanager
def postponed() -> Iterator[None]:
    """A signal that comes inside is heard at its end, by who would have heard it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGHUP:
            leave_closed_terminal()

    before = {number: signal.signal(number, note) for number in _heard()}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
    for first in came[:1]:
        signal.raise_signal(first)


def _without_echo(former: Former, came_at: float) -> Former:
    """`former`, for a signal that is none of one that has been heard: what that asked for is being done."""
    ends_at = came_at + ECHO_SECONDS
    if time.monotonic() >= ends_at:
        return former

    def hear(number: int, _: FrameType | None) -> None:
        if time.monotonic() >= ends_at:
            signal.signal(number, former)
            signal.raise_signal(number)

    return hear


def hear_no_more() -> None:
    """For a process that ends because of a signal, with its exit code: another one would replace that."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def leave_closed_terminal() -> None:
    """What is still said goes nowhere: to write to a terminal that is gone is an error, on the way out."""
    for descriptor in (STDOUT, STDERR):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), descriptor)


def _heard() -> list[signal.Signals]:
    """All but the SIGHUP that `nohup` keeps away: what it starts outlives the terminal."""
    is_kept_away = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOPPING if not (number == signal.SIGHUP and is_kept_away)]
