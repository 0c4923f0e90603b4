"""The same run under every launcher: here, under Ray Train, torchrun, deepspeed or srun.

    local      one worker, here
    ray        config.num_workers workers under Ray Train, on this machine or on the cluster of RAY_ADDRESS
    torchrun   config.num_workers workers on this machine
    deepspeed  the same, started by DeepSpeed

Inside a torchrun, a deepspeed or an srun of the user's, this process is one of its workers.

The command that launches refuses what cannot be, holds the run directory's lease, turns signals into a stop
that the workers agree on, and hands back the summary. Refusals come before torch or Ray is imported; a task
of srun's that refuses imports torch then, to tell the others, and waits up to a minute for them to hear it.
"""

import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

from infra import storage
from infra.errors import ReelgptError, Stopped, UsageError
from infra.passwords import require_no_password
from training.config import RunConfig
from training.data import TrainingData, open_data
from training.engine.deepspeed_settings import inline
from training.following import OnMetrics, followed
from training.going_on import begin, check, finished
from training.launching import announced
from training.launching.answers import Summary, surroundings
from training.launching.job import Job
from training.launching.meeting import ended_by_signals, refusals_told
from training.launching.settling import is_owing, settle
from training.launching.stopping import die_with_parent
from training.launching.under_processes import under_deepspeed, under_torchrun
from training.launching.under_ray import under_ray
from training.run_directory import Attempt, RunDirectory
from training.saving.copies import bring_owed
from training.starting_model import Start
from training.tracking.tracked_run import mend

Launcher = Literal["auto", "local", "ray", "torchrun", "deepspeed"]


def train(
    config: RunConfig,
    *,
    data: str | Sequence[str],
    run_dir: str,
    launcher: Launcher = "auto",
    resume: str = "auto",
    tokenizer: str | None = None,
    init_from: str | None = None,
    pause_after: int | None = None,
    on_metrics: OnMetrics | None = None,
) -> Summary:
    """Begins the run in `run_dir`, or goes on with it, or finds it finished; gives its summary.

    `on_metrics` hears of every line that metrics.jsonl gets; after the step `pause_after` the run stops as if
    a signal had come. Raises UsageError for what cannot be, Stopped after a signal.
    """
    announced.adopt()
    leads = announced.rank() == 0  # under a launcher of the user's, one speaks for all
    with refusals_told():
        if announced.is_worker():
            config = replace(config, num_workers=announced.world_size(), min_workers=None)
        config = inline(config)
        launch = _choose(launcher, config)
        directory = RunDirectory.at(run_dir)
        start = Start.of(directory, init_from)
        opened = open_data(config, data, tokenizer=tokenizer, init_from=start.meant if start else None)
        check(directory, config, opened, resume=resume, speaks=leads)
        summary = finished(directory, config, resume=resume)
    if summary is not None:
        if leads:
            summary = _with_debts_paid(summary, directory, config, opened)
        return summary | {"was_finished": True}
    job = _job(config, directory, opened, needs_stop_file=launch is not _here)
    job = replace(job, pause_after=pause_after)
    if not leads:
        return launch(job) | {"was_finished": False}
    with ExitStack() as held:
        with refusals_told():
            held.enter_context(directory.lease())
            begin(directory, config, opened, resume=resume, attempt=job.attempt, start=start)
        with followed(directory.metrics, on_metrics, resumed_step=directory.newest_step()):
            summary = _launched(launch, job, directory, opened)
        summary = settle(directory, config, opened, summary, is_fresh=True)
        return summary | {"was_finished": False}


def _with_debts_paid(
    summary: Summary, directory: RunDirectory, config: RunConfig, data: TrainingData
) -> Summary:
    """Of a finished run: what is to be copied, sent and registered still."""
    bring_owed(directory.path, config.checkpoints)
    if not is_owing(directory, config, summary):
        return summary
    with directory.lease():
        return settle(directory, config, data, directory.finished() or summary)


def _launched(
    launch: Callable[[Job], Summary], job: Job, directory: RunDirectory, data: TrainingData
) -> Summary:
    """Where workers died, MLflow hears how the run ended from the command."""
    try:
        return launch(job)
    except Stopped:
        raise
    except ReelgptError:
        if Attempt(directory, job.attempt).is_newest():
            mend(directory, job.config, data, "FAILED")
        raise


def _job(config: RunConfig, directory: RunDirectory, data: TrainingData, *, needs_stop_file: bool) -> Job:
    attempt = uuid.uuid4().hex[:8]
    return Job(
        config=config,
        data=tuple(data.uris),
        run_dir=directory.path,
        attempt=attempt,
        tokenizer=data.tokenizer.uri if data.tokenizer else None,
        init_from=data.init_from.uri if data.init_from else None,
        stop_file=storage.join(directory.path, f"stop-{attempt}") if needs_stop_file else None,
    )


def _choose(launcher: Launcher, config: RunConfig) -> Callable[[Job], Summary]:
    if announced.is_worker():
        if launcher != "auto":
            raise UsageError(
                f"--launcher {launcher} contradicts the launcher that started this process; leave it out"
            )
        return _here
    if launcher == "auto":
        launcher = _fitting(config)
    if launcher == "local" and config.num_workers > 1:
        raise UsageError(
            f"--launcher local runs one worker and num_workers is {config.num_workers}; "
            f"give --num-workers 1, or --launcher ray, torchrun or deepspeed"
        )
    if launcher == "ray" and not find_spec("ray"):
        raise UsageError("--launcher ray needs Ray, which is not installed here; give --launcher torchrun")
    if launcher == "ray":
        require_no_password(surroundings(), kept="Ray records", instead="where the workers run")
    elif config.min_workers is not None:
        raise UsageError(
            f"--min-workers {config.min_workers} has no effect under --launcher {launcher}, whose workers "
            f"are as many as --num-workers says; leave it out, or give --launcher ray"
        )
    launchers = {"local": _here, "ray": under_ray, "torchrun": under_torchrun, "deepspeed": under_deepspeed}
    return launchers[launcher]


def _fitting(config: RunConfig) -> Literal["local", "ray", "torchrun"]:
    if config.num_workers == 1:
        return "local"
    return "ray" if find_spec("ray") else "torchrun"


def _here(job: Job) -> Summary:
    with refusals_told(), ended_by_signals():
        from training.worker import work

    if announced.is_worker():
        die_with_parent()
    return work(job)
