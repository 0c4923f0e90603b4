"""One worker of a run, however it was launched: goes on from the newest whole checkpoint, and trains.

MLflow, `metrics.jsonl` and the bundle are rank 0's; saving, measuring and drawing need every rank.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from infra.errors import CheckpointError, Stopped
from training.bundles import start_from
from training.data import TrainingData, open_data
from training.engine.blank import Blank
from training.engine.connection import connect, disconnect
from training.engine.determinism import choose_kernels
from training.engine.engine import Engine
from training.finish import finish
from training.going_back import GONE_BACK, gone_back, joined
from training.launching.answers import require_no_hang
from training.launching.job import Job
from training.launching.meeting import STOPPED, ended_by_signals
from training.launching.stopping import StopRequest
from training.launching.watchdog import Watchdog
from training.listeners import Bundles, Evaluation, MetricsFile, Samples, StepWeights, WorstRank
from training.loading.batches import Batches
from training.loop import Listener, Progress, run_steps
from training.objectives import Learner, build_objective
from training.ranks import Ranks
from training.run import Run
from training.run_directory import Attempt, RunDirectory
from training.run_identity import identity, refuse_mismatch
from training.saver import Saving, layout, versions
from training.saving import checkpoints
from training.saving.manifest import Checkpoint
from training.saving.verified_files import VerifiedFiles
from training.tracking.tracked_run import Tracking


def work(job: Job, *, preempted: Callable[[], Collection[str]] | None = None) -> dict[str, Any]:
    """Trains to the last step and gives the run's summary, on all workers. Raises Stopped if asked to.

    `preempted` is the launcher's notice that machines are about to go: the state is saved, and training goes
    on until they do.
    """
    stop = StopRequest(job.stop_file, save_file=job.save_file, preempted=preempted)
    torch.set_num_threads(job.config.threads_per_worker)
    choose_kernels(deterministic=job.config.engine.deterministic)
    with stop.listening(), _connected() as ranks:
        data = open_data(job.config, job.data, tokenizer=job.tokenizer, init_from=job.init_from)
        return _train(_join(job, data, ranks), stop, pause_after=job.pause_after)


def _join(job: Job, data: TrainingData, ranks: Ranks) -> Run:
    attempt = Attempt(RunDirectory.at(job.run_dir), job.attempt)
    ranks.on_first(attempt.require_newest)
    ranks.on_first(lambda: require_no_hang(job))
    config = replace(job.config, num_workers=ranks.world_size, min_workers=None)  # as many as came
    objective = build_objective(config, data)
    return Run(config=config, data=data, objective=objective, ranks=ranks, attempt=attempt)


def _train(run: Run, stop: StopRequest, *, pause_after: int | None) -> dict[str, Any]:
    copies = run.ranks.on_first(lambda: run.directory.copies(run.config))
    found = checkpoints.find(run.directory.checkpoints, run.ranks, layout(run), copies=copies)
    engine, batches = _build(run, is_resumed=found.checkpoint is not None)
    progress = _resume(run, engine, found)
    resumed_from = progress.step
    lines = MetricsFile(run.attempt, resumed_step=resumed_from) if run.ranks.is_first else None
    tracking = Tracking(run, resumed_key=_run_key(found))
    facts = {
        "identity": identity(run.config, run.data),
        "run_key": tracking.key,
        GONE_BACK: _gone_back(run, found),
    }
    saving = Saving(run, engine, progress, facts, resumed=found, copies=copies)
    weights = StepWeights(engine)
    listeners: list[Listener] = [
        Evaluation(run, engine),
        Samples(run, weights, engine.device),
        saving.tell_stall,
        WorstRank(run.ranks),
    ]
    bundles = Bundles(run, weights, saving, tracking)
    listeners += [*([lines] if lines else []), tracking, saving, bundles]
    if pause_after is not None:
        listeners.append(lambda step, _: stop.ask() if step >= pause_after else None)
    with closing(batches), _status_told(tracking), saving.closing():
        watchdog = _watchdog(run, speaks=stop.is_heard_here)
        with bundles.finishing(), watchdog.watching() as pulse:
            is_done = run_steps(run, engine, batches, progress, listeners, stop, pulse, saving)
        saving.finish()
        if not is_done:
            if not progress.step:
                raise Stopped(STOPPED)
            raise Stopped(
                f"stopped after step {progress.step} of {run.config.steps}, saved; "
                f"repeat the command to go on"
            )
        last = engine.weights() or {}  # all ranks take part, rank 0 gets them
        summary = run.ranks.on_first(
            lambda: finish(
                run,
                last,
                tracking,
                progress,
                saving.newest,
                resumed_from=resumed_from,
                device=engine.device,
            )
        )
    engine.close()
    return summary


def _build(run: Run, *, is_resumed: bool) -> tuple[Engine, Batches]:
    config, data, ranks = run.config, run.data, run.ranks
    torch.manual_seed(config.seed)
    with Blank() if is_resumed else nullcontext():
        learner = Learner(run.objective)
    if data.init_from is not None and not is_resumed:
        start_from(learner.model, data.init_from)
    engine = Engine(learner, config, ranks)
    batches = Batches(
        data.train,
        data.shares,
        config.batches,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    return engine, batches


def _watchdog(run: Run, *, speaks: bool) -> Watchdog:
    attempt = run.ranks.broadcast(run.attempt.id)  # under a torchrun of the user's, each has its own
    folder = run.directory.hangs(attempt)
    return Watchdog(
        run.config.watchdog, folder, rank=run.ranks.rank, world_size=run.ranks.world_size, speaks=speaks
    )


def _resume(run: Run, engine: Engine, found: checkpoints.Found) -> Progress:
    if found.checkpoint is None or found.files is None:
        return Progress()
    state = found.checkpoint.state
    if run.ranks.is_first:
        for warning in _warnings(found, state["versions"]):
            sys.stderr.write(f"{warning}\n")
    wanted = identity(run.config, run.data)
    refuse_mismatch(state["identity"], wanted, run.directory.path, step=state["step"])
    if _load(run, engine, found.checkpoint, found.files) != state:
        raise CheckpointError(
            f"the files of {found.checkpoint.name} belong to another state than its manifest"
        )
    found.files.forget()
    return Progress(step=state["step"], units=state["units"], samples_digest=state["samples_digest"])


def _run_key(found: checkpoints.Found) -> str | None:
    return None if found.checkpoint is None else found.checkpoint.state["run_key"]


def _gone_back(run: Run, found: checkpoints.Found) -> list[str]:
    """What a checkpoint from a second place says of it, this directory need not know."""
    here = run.ranks.on_first(lambda: gone_back(run.directory))
    return joined(here, found.checkpoint.state.get(GONE_BACK, ()) if found.checkpoint else ())


def _load(run: Run, engine: Engine, checkpoint: Checkpoint, files: VerifiedFiles) -> dict[str, Any]:
    root = run.directory.checkpoints
    if checkpoint.state["layout"] == layout(run):
        return engine.load(root, checkpoint, files)
    return engine.load_from_other_layout(root, checkpoint)


def _warnings(found: checkpoints.Found, begun: dict[str, str]) -> Iterator[str]:
    for damage in found.passed_over:
        yield f"passed over a damaged checkpoint: {damage}"
    for name, here in versions().items():
        if begun.get(name) != here:
            yield f"saved under {name} {begun.get(name)}, gone on with under {here}: last bits may differ"


@contextmanager
def _connected() -> Iterator[Ranks]:
    with ended_by_signals():
        ranks = connect()
    try:
        yield ranks
    finally:
        disconnect()


@contextmanager
def _status_told(tracking: Tracking) -> Iterator[None]:
    """However the steps end, MLflow is told."""
    try:
        yield
    except Stopped:
        tracking.finish("KILLED")
        raise
    except Exception:
        tracking.finish("FAILED")
        raise
    tracking.finish("FINISHED")
