"""Saving beside the steps: the state is copied, without a GPU while the next one computes, and then written.

Every rank writes its files in a thread of its own. In the exchange of each step the ranks tell each other
how far they are; once all files of all ranks are on the disk, a thread of rank 0 commits the checkpoint. No
thread ever talks to another rank, so that nothing can wait for a word that a dead thread owes.
"""

import platform
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NoReturn

from infra.errors import CheckpointError, ReelgptError
from training.engine.engine import Engine
from training.engine.engine_files import Snapshot
from training.loop import Metrics, Progress, Standing
from training.run import Run
from training.saving import checkpoints, records
from training.saving.background import in_background
from training.saving.copies import Copies
from training.saving.manifest import FileRecord


@dataclass(frozen=True, slots=True)
class Pending:
    """A checkpoint in the writing."""

    name: str
    state: dict[str, Any]
    written: Future[list[FileRecord]]
    """This rank's part."""


class Saving:
    """Commits a checkpoint when one is due, never two at once, and forgets the oldest."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        progress: Progress,
        facts: dict[str, Any],
        *,
        resumed: checkpoints.Found,
        copies: Copies | None,
    ) -> None:
        """`facts`: what the state holds beside the progress: the run's identity and tracking."""
        self._run = run
        self._config = run.config.checkpoints
        self._root = run.directory.checkpoints
        self._engine = engine
        self._progress = progress
        self._facts = facts
        self._passed_over = resumed.passed_over
        self._saved_step = resumed.checkpoint.step if resumed.checkpoint else 0
        self._suffix = run.ranks.broadcast(checkpoints.new_suffix())
        self._pending: Pending | None = None
        self._given_up: str | None = None
        self._committing: Future[None] | None = None
        self._housekeeping: Future[None] | None = None
        self._is_untidy = False
        self._tidying = threading.Lock()
        self._copies = copies
        self._stall_seconds = 0.0
        self.newest = resumed.checkpoint.name if resumed.checkpoint else None
        """Name of the checkpoint that holds the last state that is on every rank's disk."""

    def __call__(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        with self._stalling():
            if self._committing and self._committing.done():
                self._await_commit()
            self._tidy_up()
            if self._run.config.is_saved(step):
                self._begin()

    def standing(self) -> Standing:
        pending = self._pending
        if pending is None:
            return Standing()
        if not pending.written.done():
            return Standing(writing=1.0)
        return Standing(failed=float(pending.written.exception() is not None))

    def hear(self, standing: Standing) -> None:
        if self._pending and not standing.writing:
            with self._stalling():
                self._begin_commit(self._pending, standing)

    def tell_stall(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        """A listener before the metrics are written: seconds that saving held up the steps since the last
        logged one."""
        if metrics:
            metrics["save_stall_seconds"] = self._stall_seconds + self._engine.take_copying_seconds()
            self._stall_seconds = 0.0

    def name_at(self, step: int) -> str | None:
        """Of the checkpoint that holds the state after `step`, whether or not it is written yet."""
        if step != self._saved_step:
            return None
        return self._pending.name if self._pending else self.newest

    def save_now(self) -> None:
        """Commits the state after the last step done, if that has not happened. All ranks call together."""
        with self._stalling():
            self._begin()
            self._commit()

    def finish(self) -> None:
        """After the last step: what is committed, is also copied and tidied up. All ranks call together."""
        self.save_now()
        if self._housekeeping:
            wait([self._housekeeping])
        self._tidy_up()
        if self._housekeeping:
            self._housekeeping.result()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """However the block ends, no thread is left in the midst of a file when the process goes, and nothing
        that takes room for no checkpoint."""
        try:
            yield
        finally:
            if self._pending:
                wait([self._pending.written])
            if self._committing:
                wait([self._committing])
            if self._housekeeping:  # which a commit begins
                wait([self._housekeeping])
            if self._given_up and self._run.ranks.is_first:
                checkpoints.abandon(self._root, self._given_up)

    def _begin(self) -> None:
        progress = self._progress
        if progress.step == self._saved_step:
            return
        self._commit()  # never two at once
        name, state = checkpoints.name_of(progress.step, self._suffix), self._state()
        snapshot = self._engine.snapshot(self._root, name, state, copied=self._config.background)
        self._pending = Pending(name, state, in_background(partial(self._write_files, snapshot, name)))
        self._saved_step = progress.step
        if not self._config.background:
            self._commit()

    def _commit(self) -> None:
        """Returns once the pending checkpoint is committed."""
        if self._pending is not None:
            wait([self._pending.written])
            self._begin_commit(self._pending, Standing(*self._run.ranks.sum(self.standing())))
        self._await_commit()

    def _begin_commit(self, pending: Pending, standing: Standing) -> None:
        """Has rank 0 write the manifest, beside the steps, now that every rank has ended writing. Raises
        CheckpointError, on all ranks alike, where one of them could not write."""
        self._pending = None
        if standing.failed:
            self._give_up(pending)
        if self._run.ranks.is_first:
            self._committing = in_background(partial(self._write_manifest, pending))
        self.newest = pending.name

    def _give_up(self, pending: Pending) -> NoReturn:
        error = pending.written.exception()
        problem = self._run.ranks.first_of(error and (str(error) or repr(error)))
        self._given_up = pending.name
        if error is not None and not isinstance(error, ReelgptError):
            raise error  # a bug, with the traceback that nobody else has
        raise CheckpointError(problem)

    def _write_files(self, snapshot: Snapshot, name: str) -> list[FileRecord]:
        """In a thread of its own on each rank."""
        files = snapshot.write()
        if not self._run.ranks.is_first:
            records.leave(self._root, name, self._run.ranks.rank, files)
        return files

    def _write_manifest(self, pending: Pending) -> None:
        """In a thread of rank 0's; begins what is due once it is done."""
        others = range(1, self._run.ranks.world_size)
        files = [*pending.written.result(), *records.found(self._root, pending.name, others)]
        self._run.attempt.require_newest()
        step = pending.state["step"]
        checkpoints.commit(self._root, name=pending.name, step=step, state=pending.state, files=files)
        self._is_untidy = True
        self._tidy_up()

    def _await_commit(self) -> None:
        if self._committing:
            self._committing.result()
            self._committing = None

    def _tidy_up(self) -> None:
        """Begins to forget and to copy what is due, unless the last time is not over: nobody waits for it."""
        with self._tidying:
            if not self._is_untidy or (self._housekeeping and not self._housekeeping.done()):
                return
            if self._housekeeping:
                self._housekeeping.result()
            self._is_untidy = False
            self._housekeeping = in_background(self._keep_house)

    def _keep_house(self) -> None:
        self._run.attempt.require_newest()
        keep_last, keep_every_steps = self._config.keep_last, self._config.keep_every_steps
        checkpoints.prune(
            self._root, keep_last=keep_last, keep_every_steps=keep_every_steps, passed_over=self._passed_over
        )
        if self._copies is not None:
            self._copies.catch_up(self._config)

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._stall_seconds += time.monotonic() - began

    def _state(self) -> dict[str, Any]:
        step = self._progress.step
        return {
            "step": step,
            "clips": self._run.config.batches.clips_taken(step),
            "units": self._progress.units,
            "samples_digest": self._progress.samples_digest,
            "layout": layout(self._run),
            "versions": versions(),
            **self._facts,
        }


def layout(run: Run) -> dict[str, int]:
    """How the state lies in the files: in another one it must be converted."""
    world_size = run.ranks.world_size
    return {"world_size": world_size, "zero_stage": run.config.engine.stage_among(world_size)}


@cache
def versions() -> dict[str, str]:
    """What may change the last bit of a number."""
    from importlib.metadata import version

    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "deepspeed", "numpy")
    }
