"""What is put into a worker to break it, as Python that runs before anything else in it, with `rank` set; and
the runs that it is put into, beside those that nothing happened to.
"""

import random
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.shards import ShardSet
from tests.faults.matrix import SEED
from tests.training import runs
from tests.training.workers import Group, Workers

STAGES = (0, 1, 2, 3)
PLACES = ("data", "exchange", "update", "beside")
"""Of a step; saving, measuring and writing are beside it."""
LONGEST_DELAY_SECONDS = 0.08

AT_A_PLACE = """
import os, signal, threading, time
import training.launching.watchdog

arrive = training.launching.watchdog.Pulse.at


def strike():
    {deed}


def at(self, step, place):
    arrive(self, step, place)
    if (rank, step, place) == {moment!r}:
        threading.Timer({delay}, strike).start() if {delay} else strike()


training.launching.watchdog.Pulse.at = at
"""
IN_A_FILE = """
import os, signal, time

sync, replace = os.fsync, os.replace


def is_meant(path):
    return {part!r} in path and {name!r} in os.path.basename(path) and {rank!r} in (None, rank)


def fsync(descriptor):
    if is_meant(os.readlink(f"/proc/self/fd/{{descriptor}}")):
        {before}
    sync(descriptor)


def rename(source, target, **options):
    replace(source, target, **options)
    if is_meant(os.fspath(target)):
        {after}


os.fsync, os.replace = fsync, rename
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
SLEEP_UNTIL = "while not os.path.exists({path!r}): time.sleep(0.01)"
WAIT_FOR = "import glob\nwhile not glob.glob({pattern!r}): time.sleep(0.01)"
"""What has been saved beside the steps is not there at once."""
HALVE = "os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)"


@dataclass(frozen=True, slots=True)
class Moment:
    """Somewhere in a run: so long after `rank` has come to `place` of `step`."""

    rank: int
    step: int
    place: str
    delay: float = 0.0

    def __str__(self) -> str:
        return f"rank{self.rank}-step{self.step}-{self.place}-{self.delay * 1000:.0f}ms"


def by_chance(count: int, *, rank: int, what: str, steps: int = runs.STEPS) -> list[Moment]:
    """Of the run's life: half of them at the very place, half at any time after it. `what`: one seed each."""
    chance = random.Random(f"{SEED} {what} {rank}")
    return [
        Moment(
            rank, chance.randint(1, steps), chance.choice(PLACES),
            round(chance.uniform(0.001, LONGEST_DELAY_SECONDS), 3) if number % 2 else 0.0,
        )
        for number in range(count)
    ]  # fmt: skip


def at(moment: Moment, deed: str = KILL) -> str:
    where = moment.rank, moment.step, moment.place
    return AT_A_PLACE.format(deed=deed, moment=where, delay=moment.delay)


def in_file(
    name: str, *, part: str = "/", rank: int | None = None, before: str = "pass", after: str = "pass"
) -> str:
    """`before` a file with `name` in its own and `part` in its whole name is on the disk, with its
    `descriptor`, or `after` one has got that name; on all ranks or one."""
    return IN_A_FILE.format(name=name, part=part, rank=rank, before=before, after=after)


@dataclass(frozen=True, slots=True)
class Undisturbed:
    run_dir: Path
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs of one small GPT in forked workers; each undisturbed one is made once."""

    workers: Workers
    data: ShardSet
    folder: Path
    known: dict[tuple[Any, ...], Undisturbed] = field(default_factory=dict)

    def arguments(self, run_dir: Path, *options: str) -> tuple[str, ...]:
        return "gpt_tiny", f"--data={self.data.uri}", f"--run-dir={run_dir}", *runs.GPT, *options

    def start(self, run_dir: Path, *options: str, **how: Any) -> Group:
        return self.workers.start(*self.arguments(run_dir, *options), **how)

    def run(self, run_dir: Path, *options: str, **how: Any) -> dict[str, Any]:
        """Its summary, or what it refused with."""
        return self.workers.run(*self.arguments(run_dir, *options), **how)

    def killed(self, run_dir: Path, *options: str, rank: int, faults: Sequence[str], **how: Any) -> None:
        """A run whose worker `rank` the faults kill."""
        group = self.start(run_dir, *options, faults=faults, **how)
        codes = group.codes()
        assert codes[rank] == -signal.SIGKILL, (codes, group.said())
        assert all(codes), (codes, group.said())

    def undisturbed(self, *options: str, world_size: int = 2) -> Undisturbed:
        key = (*options, world_size)
        if key not in self.known:
            run_dir = self.folder / f"undisturbed-{len(self.known)}"
            self.known[key] = Undisturbed(run_dir, self.run(run_dir, *options, world_size=world_size))
        return self.known[key]

    def unfinished(self, run_dir: Path, *options: str) -> Undisturbed:
        """An undisturbed run copied to `run_dir`, as if it had been killed just before its result."""
        expected = self.undisturbed(*options)
        shutil.copytree(expected.run_dir, run_dir)
        (run_dir / "result.json").unlink()
        return expected

    def goes_on(
        self, run_dir: Path, *options: str, world_size: int = 2, resumed_from: int | None = None
    ) -> dict[str, Any]:
        """The command repeated goes on from the newest checkpoint, or from that of `resumed_from`, and ends
        as if nothing had happened; its summary."""
        saved = runs.newest_committed(run_dir) if resumed_from is None else resumed_from
        summary = self.run(run_dir, *options, world_size=world_size)
        assert summary["resumed_from"] == saved
        expected = self.undisturbed(*options, world_size=world_size)
        require_same(run_dir, summary, expected)
        return summary


def require_same(run_dir: Path, summary: dict[str, Any], expected: Undisturbed) -> None:
    """The clips of every step, every loss and other number, and every weight, to the last bit."""
    assert clips_taken(run_dir) == clips_taken(expected.run_dir)
    assert runs.metrics(run_dir) == runs.metrics(expected.run_dir)
    assert summary["fingerprint"] == expected.summary["fingerprint"]


def clips_taken(run_dir: Path) -> list[tuple[float, float]]:
    """Of each step, a digest of the ids of all clips up to it."""
    return [(line["step"], line["samples_digest"]) for line in runs.metrics(run_dir)]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in runs.metrics(run_dir)]


def newest_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").iterdir(), key=lambda path: path.name)
