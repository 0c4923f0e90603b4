"""The end of a run, on rank 0: last measurements, the bundle, the result.

What the registry makes of it is the command's matter: see `training.launching.settling`.
"""

import statistics
from typing import Any

import torch
from torch import Tensor, nn

from infra import storage
from model.gpt import GPT
from model.tokenizer import Tokenizer
from training.bundles import Origin, write_bundle
from training.engine.on_device import on_device
from training.evaluate import evaluate_gpt, evaluate_tokenizer
from training.loop import Progress
from training.objectives import Predict, assemble
from training.run import Run
from training.run_directory import RunDirectory
from training.tracking.tracked_run import Tracking


def finish(
    run: Run,
    weights: dict[str, Tensor],
    tracking: Tracking,
    progress: Progress,
    checkpoint: str | None,
    *,
    resumed_from: int,
    device: torch.device,
) -> dict[str, Any]:
    """Leaves bundle and result, gives the run's summary. Doing it again after a kill changes nothing.

    `checkpoint`: the one that holds these weights. `device`: where the model is measured.
    """
    run.attempt.require_newest()
    config, directory = run.config, run.directory
    model = assemble(run.objective, weights)
    evaluation = on_device(model, device, lambda there: _evaluate(there, run))
    origin = Origin(
        step=config.steps,
        checkpoint=checkpoint,
        run_key=tracking.key,
        mlflow_run_id=tracking.await_run_id(),
    )
    bundle = write_bundle(run, directory.bundle, model, origin, evaluation)
    _complete_last_line(directory, evaluation)
    summary = {
        **_facts(run, progress),
        "resumed_from": resumed_from,
        "parameters": sum(value.numel() for value in weights.values()),
        **_history(directory),
        **evaluation,
        "measured": sorted(evaluation),
        "bundle": bundle.uri,
        "fingerprint": bundle.fingerprint,
        "mlflow_run_id": tracking.run_id,
        "model_version": None,
    }
    storage.write_json(directory.result, summary)
    return summary


def _facts(run: Run, progress: Progress) -> dict[str, Any]:
    config = run.config
    return {
        "recipe": config.name,
        "run_dir": run.directory.path,
        "steps_done": progress.step,
        run.objective.unit: progress.units,
        "workers": config.num_workers,
        "zero_stage": config.engine.stage_among(config.num_workers),
        "clips_left_out": run.data.num_left_out,
    }


def _evaluate(model: nn.Module, run: Run) -> dict[str, float]:
    data = run.data
    if isinstance(model, Tokenizer):
        return evaluate_tokenizer(model, data.validation)
    assert isinstance(model, GPT)
    assert isinstance(run.objective, Predict)
    vocabulary, task = run.objective.vocabulary, run.objective.task
    return evaluate_gpt(model, vocabulary, data.tokenizer_config, task, data.train, data.validation)


def _complete_last_line(directory: RunDirectory, evaluation: dict[str, float]) -> None:
    """The finished model's numbers are those of the last step, in `metrics.jsonl` as in MLflow."""
    lines = directory.read_metrics()
    if lines:
        directory.write_metrics([*lines[:-1], lines[-1] | evaluation])


def _history(directory: RunDirectory) -> dict[str, Any]:
    """First and last losses, and the pace, from the lines that the run wrote."""
    lines = [line for line in directory.read_metrics() if {"loss", "seconds_per_step"} <= line.keys()]
    if not lines:
        return {}
    return {
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "seconds_per_step": statistics.median(line["seconds_per_step"] for line in lines),
    }
