"""Whether a command may go on with the run of a directory, and how it takes it over. Imports no torch."""

import glob
import sys
from typing import Any

from infra import configs, storage
from infra.commit import code_commit
from infra.errors import UsageError
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

LEFT_BEHIND = ("ray-*", "stop-*")
"""What a command that was killed leaves in the directory."""

RESUME = ("auto", "must", "never")


def check(
    directory: RunDirectory, config: RunConfig, data: TrainingData, *, resume: str, speaks: bool = True
) -> None:
    """Raises UsageError where the directory is not the run's, or may not be gone on with so.

    Raises TrainingError where a line of its metrics is damaged. Changes nothing, so that every task of a
    launcher of the user's can ask, while the first one begins: that one `speaks` of what is no error.
    """
    are_strange = directory.has_files()  # before it is asked for the config, which may come meanwhile
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
    if storage.exists(directory.config):
        kept, _ = manifest.committed(directory.checkpoints)
        refuse_mismatch(
            _begun(directory),
            identity(config, data),
            directory.path,
            step=going.step if going else _steps_done(directory),
            ways_back=ways_back(directory, kept),
        )
        directory.read_metrics()  # a damaged line is met here, before any worker starts
    elif are_strange:
        raise directory.foreign()
    has_some = any(manifest.committed(directory.checkpoints)) or _has_copies(directory, config, data, going)
    if resume == "never" and has_some:
        raise UsageError(
            f"{directory.path} has checkpoints, and --resume never starts a run anew; "
            f"give another --run-dir, or go on with --resume auto"
        )
    if resume == "must" and not has_some:
        raise UsageError(
            f"{directory.path} has no checkpoint to resume from; begin the run with --resume auto"
        )
    if not has_some and 0 < _steps_done(directory) < config.steps:
        raise UsageError(
            f"{directory.path} has done {_steps_done(directory)} steps and has no checkpoint left; "
            f"begin another run from its model, in another --run-dir, with --init-from {directory.bundle}"
        )


def finished(directory: RunDirectory, config: RunConfig, *, resume: str) -> dict[str, Any] | None:
    """The summary of a run that has done all steps that this command wants; None where some are left."""
    if goes_back(directory, config, resume) or _steps_done(directory) != config.steps:
        return None
    return directory.finished()


def begin(
    directory: RunDirectory, config: RunConfig, data: TrainingData, *, resume: str, attempt: str
) -> None:
    """Makes the directory that of the run, at the step to resume from if one is named.

    From here on, `attempt` is the one that may write.
    """
    behind, last_step = gone_back(directory), None
    if going := goes_back(directory, config, resume):
        going.rewind(directory.checkpoints, directory.copies(config))
        last_step = going.step
        behind = joined(behind, [str(going)])  # said last: a kill before it goes back again
    elif storage.exists(directory.config) and _has_told_others(directory, identity(config, data)):
        last_step = _kept_of_what_was_told(directory, config)
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
    }
    storage.write_json(directory.config, record)
    for pattern in LEFT_BEHIND:
        for path in glob.glob(storage.join(glob.escape(directory.path), pattern)):
            storage.delete(path)


def _steps_done(directory: RunDirectory) -> int:
    """Also of a finished run whose checkpoints somebody has deleted."""
    result = directory.finished()
    return max(directory.newest_step(), int(result["steps_done"]) if result else 0)


def _has_told_others(directory: RunDirectory, wanted: dict[str, Any]) -> bool:
    """Whether it has said something of a step that is another now: a kill lost it, and it is taken again."""
    told = max((int(line["step"]) for line in directory.read_metrics()), default=0)
    return told > alike_until(_begun(directory), wanted, told)


def _kept_of_what_was_told(directory: RunDirectory, config: RunConfig) -> int:
    """The last step that was told as the newest checkpoint has it, which may be a copy, of another machine's
    command."""
    copies = directory.copies(config)
    kept = manifest.committed(directory.checkpoints)[0] + (copies.committed()[0] if copies else [])
    if not kept:
        return 0
    newest = max(kept, key=lambda checkpoint: checkpoint.age)
    return alike_until(_begun(directory), newest.state["identity"], newest.step)


def _has_copies(
    directory: RunDirectory, config: RunConfig, data: TrainingData, going: GoingBack | None
) -> bool:
    """Whether a run of this config was copied to where this one would be. Raises ConfigError where it was
    another."""
    if (place := directory.copies(config)) is None:
        return False
    copies, _ = place.committed()
    for checkpoint in copies[:1]:
        begun, wanted = checkpoint.state["identity"], identity(config, data)
        done = going.step if going else checkpoint.step
        refuse_mismatch(begun, wanted, place.uri, step=done, ways_back=ways_back(directory, copies))
    return bool(copies)


def _begun(directory: RunDirectory) -> dict[str, Any]:
    """Identity of the run that is there. Raises UsageError where `config.json` is not ours."""
    begun = directory.record().get("identity")
    if not isinstance(begun, dict):
        raise directory.foreign()
    return begun
