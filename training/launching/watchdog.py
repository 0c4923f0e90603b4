"""Ends a run that hangs: a step that takes 20 times the median leaves every rank's stack and one clear error.

A hung collective cannot be asked who is missing, so the ranks talk through files in the run directory, each
from a thread of its own: who is late raises the alarm, everybody answers with a stack, and who does not
answer is not there.

    hangs/5c1f20ab/rank-00001.txt   its threads' stacks
    hangs/5c1f20ab/rank-00001.json  where it was
    hangs/5c1f20ab/verdict.json     the error

Where a library holds the interpreter's lock, no thread of Python answers, and the others say that this rank
gives no sign: its stack is then written by faulthandler's own thread, to stderr.
"""

import contextlib
import faulthandler
import os
import re
import shutil
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from infra import configs, storage
from infra.errors import StorageError
from training.configs.watchdog import WatchdogConfig

PLACES = ("data", "exchange", "update", "beside")
"""Of a step, in their order: its examples, counts and wishes of all ranks, the update; then the listeners."""
COMPILING = "compiling"
"""An update whose shapes are new, before which the model is compiled for them."""
SAVING = "saving"
"""After the exchange, where a machine or the whole group is about to be taken away."""
PATIENT = (COMPILING, SAVING, "beside")
"""Where it takes what it takes."""
STANDS_FOR = {COMPILING: "update", SAVING: "exchange"}
"""Which of PLACES they are, where ranks are compared."""
FIRST_STEPS = 3
"""Before a median means anything."""
REMEMBERED_STEPS = 100
ANSWER_SECONDS = 5.0
"""For the other ranks to answer an alarm, beside the time between two looks."""
TIMER_SLACK_SECONDS = 1.0
"""For a watchdog that is kept waiting for a processor or a disk: it comes late, and is no sign of a hang."""
LONGEST_TIMER_SECONDS = 1e6
WAITING = re.compile(r"torch/distributed/|deepspeed/comm/|training/ranks\.py$")
"""Files in which one waits for other ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    rank: int
    step: int
    place: str
    seconds: float
    """In this step, or beside it."""
    is_late: bool
    is_waiting: bool
    """Whether it was inside a call that waits for other ranks."""

    @property
    def position(self) -> tuple[int, int]:
        return self.step, PLACES.index(STANDS_FOR.get(self.place, self.place))


class Pulse:
    """Where a rank is, and since when; told by the loop, looked at by the watchdog's thread."""

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._durations: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self.step, self.place, self.since = 0, "beside", time.monotonic()

    def at(self, step: int, place: str) -> None:
        now = time.monotonic()
        if place == "beside":
            self._durations.append(now - self.since)
        if place in ("data", SAVING, "beside") or self.place == SAVING:
            self.since = now
        self.step, self.place = step, place

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    @property
    def median(self) -> float:
        return statistics.median(list(self._durations)) if self._durations else 0.0

    @property
    def limit(self) -> float:
        if self.place in PATIENT or len(self._durations) < FIRST_STEPS:
            return self._config.grace_seconds
        return max(self._config.floor_seconds, self._config.factor * self.median)


class Watchdog:
    def __init__(
        self, config: WatchdogConfig, folder: str, *, rank: int, world_size: int, speaks: bool
    ) -> None:
        """`folder`: of this attempt's alarms, the same on all ranks. `speaks`: no launcher says the error."""
        self.pulse = Pulse(config)
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._speaks = speaks
        self._poll_seconds = min(2.0, config.floor_seconds / 4)
        self._alarmed_at: float | None = None
        self._main = threading.main_thread() if _is_main() else threading.current_thread()
        self._ended = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[Pulse]:
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._arm()
        thread.start()
        try:
            yield self.pulse
        finally:
            self._ended.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """A disk that is full, or away for a while, does not end the watch: the next look tries again."""
        said = ""
        while not self._ended.wait(self._poll_seconds):
            self._arm()
            try:
                self._look()
            except (OSError, StorageError) as error:
                if str(error) != said:
                    said = str(error)
                    _say(f"the watchdog cannot use {self._folder}, and tries again: {error}")

    def _arm(self) -> None:
        """Sets the timer that goes off where nobody comes here again before the step is late.

        It ends nothing: it cannot tell a process that hangs from one that was stopped for a while.
        """
        left = max(0.0, self.pulse.limit - self.pulse.seconds) + 2 * self._poll_seconds + TIMER_SLACK_SECONDS
        faulthandler.dump_traceback_later(min(left, LONGEST_TIMER_SECONDS), file=sys.__stderr__ or 2)

    def _look(self) -> None:
        is_late = self.pulse.seconds > self.pulse.limit
        if not is_late and not os.path.isdir(self._folder):
            self._alarmed_at = None
            return
        if self._alarmed_at is None:
            self._tell(is_late)
            self._alarmed_at = time.monotonic()
        elif is_late and time.monotonic() - self._alarmed_at > ANSWER_SECONDS + self._poll_seconds:
            self._judge()

    def _tell(self, is_late: bool) -> None:
        os.makedirs(self._folder, exist_ok=True)
        name = os.path.join(self._folder, f"rank-{self._rank:05d}")
        with open(f"{name}.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        storage.write_json(f"{name}.json", configs.to_dict(self._report(is_late)))

    def _report(self, is_late: bool) -> Report:
        frame = sys._current_frames().get(self._main.ident or 0)
        return Report(
            rank=self._rank,
            step=self.pulse.step,
            place=self.pulse.place,
            seconds=self.pulse.seconds,
            is_late=is_late,
            is_waiting=frame is not None and _waits(frame),
        )

    def _judge(self) -> None:
        reports = self._reports()
        if not any(report.rank == self._rank for report in reports):
            self._alarmed_at = None  # another rank took the alarm back: tell anew at the next look
            return
        if any(report.place in PATIENT and not report.is_late for report in reports):
            # somebody saves, measures or compiles: no hang yet
            shutil.rmtree(self._folder, ignore_errors=True)
            self._alarmed_at = None
            return
        verdict = os.path.join(self._folder, "verdict.json")
        is_mine = self._rank == min(report.rank for report in reports)
        message = self._message(reports)
        if is_mine:
            storage.write_json(verdict, {"message": message})
        elif not os.path.exists(verdict):
            return  # until the next look
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        if is_mine and self._speaks:
            _say(f"error: {message}")
        os._exit(1)

    def _reports(self) -> list[Report]:
        names = (f"rank-{rank:05d}.json" for rank in range(self._world_size))
        paths = [os.path.join(self._folder, name) for name in names]
        return [configs.from_dict(Report, storage.read_json(path)) for path in paths if os.path.exists(path)]

    def _message(self, reports: list[Report]) -> str:
        mine = next(report for report in reports if report.rank == self._rank)
        whose = "every rank's stack is" if len(reports) == self._world_size else "the others' stacks are"
        return (
            f"step {mine.step} hangs: it has taken {self.pulse.seconds:.0f} s, and the median step "
            f"{self.pulse.median:.3g} s; {_missing(reports, self._world_size)}; {whose} in "
            f"{self._folder}; repeat the command to go on from the newest whole checkpoint"
        )


def verdict_in(folder: str) -> str | None:
    """The error of a run that its watchdog ended."""
    try:
        message: str = storage.read_json(os.path.join(folder, "verdict.json"))["message"]
    except StorageError:
        return None
    return message


def _missing(reports: list[Report], world_size: int) -> str:
    """Who did not arrive: who gives no sign, or lags behind, or does not wait where others do."""
    silent = sorted(set(range(world_size)) - {report.rank for report in reports})
    if silent:
        return f"{_ranks(silent)} did not arrive and gave no sign: stopped, dead or cut off"
    furthest = max(report.position for report in reports)
    behind = [report.rank for report in reports if report.position < furthest]
    if not behind and any(report.is_waiting for report in reports):
        behind = [report.rank for report in reports if not report.is_waiting]
    if behind:
        return f"{_ranks(behind)} did not arrive"
    return "every rank arrived at the same place" if world_size > 1 else "there is no other rank to wait for"


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # it may go to the very disk that is full
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def _waits(frame: FrameType) -> bool:
    return bool(WAITING.search(frame.f_code.co_filename))


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
