"""One worker of a run, however it was launched: goes on from the newest whole checkpoint, and trains.

MLflow, `metrics.jsonl` and the bundle are rank 0's; saving, measuring and drawing need every rank.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from infra.errors import CheckpointError, Stopped
from training import checkpoints
from training.batches import Batches
from training.config import RunConfig
from training.data import TrainingData, open_data
from training.engine import Engine, connect, disconnect
from training.finish import finish
from training.job import Job
from training.listeners import Evaluation, MetricsFile, Samples, Saving, Tracking
from training.loop import Listener, Progress, run_steps
from training.objectives import Learner, build_objective
from training.ranks import Ranks
from training.run_directory import RunDirectory, identity, refuse_mismatch
from training.samples import drawer
from training.stopping import StopRequest


def work(job: Job) -> dict[str, Any]:
    """Trains to the last step and gives the run's summary, on all workers. Raises Stopped if asked to."""
    stop = StopRequest(job.stop_file)
    torch.set_num_threads(job.config.threads_per_worker)
    with stop.listening(), _connected() as ranks:
        data = open_data(job.config, job.data, tokenizer=job.tokenizer)
        return _train(job.config, RunDirectory.at(job.run_dir), data, ranks, stop)


def _train(
    config: RunConfig, directory: RunDirectory, data: TrainingData, ranks: Ranks, stop: StopRequest
) -> dict[str, Any]:
    objective = build_objective(config, data)
    torch.manual_seed(config.seed)
    engine = Engine(Learner(objective), config.engine, config.optimizer, config.batches, ranks)
    batches = Batches(
        data.shard_set,
        data.train,
        config.batches,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    found, progress = _resume(config, directory, data, engine, ranks)
    tracking = Tracking(config, directory, data, ranks)
    facts = {"identity": identity(config, data), "mlflow_run_id": tracking.run_id}
    saving = Saving(config, directory, engine, ranks, progress, facts, resumed=found)
    listeners: list[Listener] = [Evaluation(config, data, objective, engine, ranks)]
    listeners.append(Samples(config, directory, engine, drawer(config, data, objective)))
    if ranks.is_first:
        listeners.append(MetricsFile(directory.metrics, resumed_step=progress.step))
    listeners += [tracking, saving]
    resumed_from = progress.step
    with _status_told(tracking):
        if not run_steps(config, engine, batches, objective, ranks, progress, listeners, stop):
            saving.save()
            raise Stopped(
                f"stopped after step {progress.step} of {config.steps}, saved; repeat the command to go on"
            )
        weights = engine.weights()
        engine.close()
        if weights is None:
            return ranks.broadcast({})
        summary = finish(
            config, directory, data, objective, weights, tracking, progress, resumed_from=resumed_from
        )
        return ranks.broadcast(summary)


def _resume(
    config: RunConfig, directory: RunDirectory, data: TrainingData, engine: Engine, ranks: Ranks
) -> tuple[checkpoints.Found, Progress]:
    found = checkpoints.find(directory.checkpoints, ranks)
    if ranks.is_first:
        for damage in found.passed_over:
            sys.stderr.write(f"passed over a damaged checkpoint: {damage}\n")
    if found.checkpoint is None:
        return found, Progress()
    state = found.checkpoint.state
    refuse_mismatch(state["identity"], identity(config, data), directory.path)
    if engine.load(directory.checkpoints, found.checkpoint.name) != state:
        raise CheckpointError(
            f"the files of {found.checkpoint.name} belong to another state than its manifest"
        )
    return found, Progress(step=state["step"], units=state["units"])


@contextmanager
def _connected() -> Iterator[Ranks]:
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
