"""Whether a command may go on with the run of a directory, and how it takes it over. Imports no torch."""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra import configs, storage
from infra.commit import code_commit
from infra.errors import ReelgptError, UsageError
from training.config import RunConfig
from training.data import TrainingData
from training.forgetting import forget_after
from training.going_back import (
    GONE_BACK,
    GoingBack,
    goes_back,
    gone_back,
    joined,
    once_more,
    ways_back,
)
from training.run_directory import RunDirectory
from training.run_identity import alike_until, identity, refuse_mismatch
from training.saving import manifest
from training.saving.manifest import Checkpoint, Damage
from training.starting_model import STARTED_FROM, Start

LEFT_BEHIND = ("ray-*", "save-*", "stop-*")
"""What a command that was killed leaves in the directory."""

RESUME = ("auto", "must", "never")


@dataclass(frozen=True, slots=True)
class Kept:
    """The checkpoints of a run, newest first: those in its directory, and the copies."""

    here: list[Checkpoint]
    damaged: list[Damage]
    """Of those here."""
    copied: list[Checkpoint]
    """Empty where they are out of reach and some are here, as who goes on from one says."""

    @classmethod
    def of(cls, directory: RunDirectory, config: RunConfig) -> "Kept":
        here, damaged = manifest.committed(directory.checkpoints)
        copies = directory.copies(config)
        try:
            return cls(here, damaged, copies.committed()[0] if copies else [])
        except ReelgptError:
            if not here:
                raise
            return cls(here, damaged, [])

    @property
    def are_some(self) -> bool:
        """Damaged ones, too: no run is begun anew beside them."""
        return bool(self.here or self.damaged or self.copied)

    @property
    def anywhere(self) -> list[Checkpoint]:
        return sorted([*self.here, *self.copied], key=lambda checkpoint: checkpoint.age, reverse=True)


def check(
    directory: RunDirectory, config: RunConfig, data: TrainingData, *, resume: str, speaks: bool = True
) -> None:
    """Raises UsageError where the directory is not the run's, or may not be gone on with so.

    Raises TrainingError where a line of its metrics is damaged. Changes nothing, so that every task of a
    launcher of the user's can ask, while the first one begins: that one `speaks` of what is no error.
    """
    directory.require_folders()
    are_strange = directory.has_files()  # before it is asked for the config, which may come meanwhile
    going = _going_back(directory, config, resume, speaks=speaks)
    if are_strange and not storage.exists(directory.config):
        raise directory.foreign()
    kept = Kept.of(directory, config)
    done = _steps_done(directory, kept.here)
    _refuse_another_run(directory, config, data, kept, steps_done=done, going=going)
    directory.read_metrics()  # a damaged line is met here, before any worker starts
    _refuse_resume(directory, resume, kept)
    if not kept.are_some and 0 < done < config.steps:
        raise UsageError(
            f"{directory.path} has done {done} steps and has no checkpoint left; "
            f"begin another run from its model, in another --run-dir, with --init-from {directory.bundle}"
        )
    if not kept.are_some and resume != "never":
        _refuse_lost_checkpoints(directory, config)


def finished(directory: RunDirectory, config: RunConfig, *, resume: str) -> dict[str, Any] | None:
    """The summary of a run that has done all steps that this command wants; None where some are left."""
    here, _ = manifest.committed(directory.checkpoints)
    if goes_back(directory, config, resume) or _steps_done(directory, here) != config.steps:
        return None
    return directory.finished()


def begin(
    directory: RunDirectory,
    config: RunConfig,
    data: TrainingData,
    *,
    resume: str,
    attempt: str,
    start: Start | None = None,
) -> None:
    """Makes the directory that of the run, at the step to resume from if one is named. `start`: the model
    that it begins from.

    From here on, `attempt` is the one that may write.
    """
    directory.require_writable()
    behind, last_step = gone_back(directory), None
    if going := goes_back(directory, config, resume):
        going.rewind(directory.checkpoints, directory.copies(config))
        last_step = going.step
        behind = joined(behind, [str(going)])  # said last: a kill before it goes back again
    elif storage.exists(directory.config) and _has_told_others(directory, identity(config, data)):
        last_step = _kept_of_what_was_told(directory, config)
    elif directory.read_metrics() and not Kept.of(directory, config).are_some:
        directory.write_metrics(())  # before the config says how often this command saves
    storage.delete(directory.result)  # of a run that is lengthened, or goes back: before its model goes
    if last_step is not None:
        forget_after(directory, last_step)
    record = {
        "attempt": attempt,
        "recipe": config.name,
        "config": configs.to_dict(config),
        "data": data.uris,
        "identity": identity(config, data),
        "commit": code_commit(),
        GONE_BACK: behind,
        STARTED_FROM: start and start.record(),
    }
    storage.write_json(directory.config, record)
    for pattern in LEFT_BEHIND:
        for path in glob.glob(storage.join(glob.escape(directory.path), pattern)):
            storage.delete(path)


def _going_back(directory: RunDirectory, config: RunConfig, resume: str, *, speaks: bool) -> GoingBack | None:
    """What the command has to go back for, if it has. Raises UsageError where `--resume` means nothing."""
    named = GoingBack.named(resume)
    if named is None and resume not in RESUME:
        raise UsageError(
            f"--resume {resume} means nothing; give {', '.join(RESUME)} or the step of a checkpoint"
        )
    going = goes_back(directory, config, resume)
    if named is not None and going is None and speaks:
        sys.stderr.write(
            f"{directory.path} has gone back to step {named.step} before, and goes on from where it is; "
            f"to go back there once more, give --resume {once_more(directory, named)}\n"
        )
    return going


def _refuse_another_run(
    directory: RunDirectory,
    config: RunConfig,
    data: TrainingData,
    kept: Kept,
    *,
    steps_done: int,
    going: GoingBack | None,
) -> None:
    """Raises ConfigError where the run that is here, or the one that was copied to where the copies of this
    one would be, is another."""
    wanted, ways = identity(config, data), ways_back(directory, kept.anywhere)
    if storage.exists(directory.config):
        done = going.step if going else steps_done
        refuse_mismatch(_begun(directory), wanted, directory.path, step=done, ways_back=ways)
    for copy in kept.copied[:1]:
        done = going.step if going else copy.step
        place = str(config.checkpoints.copy_to)
        refuse_mismatch(copy.state["identity"], wanted, place, step=done, ways_back=ways)


def _refuse_resume(directory: RunDirectory, resume: str, kept: Kept) -> None:
    if resume == "never" and kept.are_some:
        raise UsageError(
            f"{directory.path} has checkpoints, and --resume never starts a run anew; "
            f"give another --run-dir, or go on with --resume auto"
        )
    if resume == "must" and not kept.are_some:
        raise UsageError(
            f"{directory.path} has no checkpoint to resume from; begin the run with --resume auto"
        )


def _refuse_lost_checkpoints(directory: RunDirectory, config: RunConfig) -> None:
    """Raises UsageError where the run has come so far that it had checkpoints, and none is left: nothing is
    trained from scratch by accident. A save never begins before the one before it is committed."""
    if not storage.exists(directory.config):
        return
    every_steps = _saved_every(directory)  # before lines: see `begin`
    as_begun = replace(config, checkpoints=replace(config.checkpoints, every_steps=every_steps))
    told = max((int(line["step"]) for line in directory.read_metrics()), default=0)
    saved = [step for step in range(1, told) if as_begun.is_saved(step)]
    if len(saved) > 1:
        raise UsageError(
            f"{directory.path} has told of {told} steps and has no checkpoint left, though it saved that of "
            f"step {saved[0]}; bring its checkpoints back, or begin anew with --resume never"
        )


def _saved_every(directory: RunDirectory) -> int:
    try:
        return int(directory.record()["config"]["checkpoints"]["every_steps"])
    except (KeyError, TypeError, ValueError):
        raise directory.foreign() from None


def _steps_done(directory: RunDirectory, here: Sequence[Checkpoint]) -> int:
    """Also of a finished run whose checkpoints, which are `here` otherwise, somebody has deleted."""
    result = directory.finished()
    return max(here[0].step if here else 0, int(result["steps_done"]) if result else 0)


def _has_told_others(directory: RunDirectory, wanted: dict[str, Any]) -> bool:
    """Whether it has said something of a step that is another now: a kill lost it, and it is taken again."""
    told = max((int(line["step"]) for line in directory.read_metrics()), default=0)
    return told > alike_until(_begun(directory), wanted, told)


def _kept_of_what_was_told(directory: RunDirectory, config: RunConfig) -> int:
    """The last step that was told as the newest checkpoint has it, which may be a copy, of another machine's
    command."""
    newest = next(iter(Kept.of(directory, config).anywhere), None)
    return alike_until(_begun(directory), newest.state["identity"], newest.step) if newest else 0


def _begun(directory: RunDirectory) -> dict[str, Any]:
    """Identity of the run that is there. Raises UsageError where `config.json` is not ours."""
    begun = directory.record().get("identity")
    if not isinstance(begun, dict):
        raise directory.foreign()
    return begun
