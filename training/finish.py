"""The end of a run, on rank 0: last measurements, the bundle, its version in the registry, the result."""

import statistics
from typing import Any, cast

from torch import Tensor, nn

from infra import configs, registry, storage
from infra.commit import code_commit
from model.bundle import BundleInfo, save_bundle
from model.gpt import GPT
from model.tokenizer import Tokenizer
from training.config import RunConfig
from training.data import TrainingData
from training.evaluate import evaluate_gpt, evaluate_tokenizer
from training.loop import Progress
from training.objective_config import PredictConfig
from training.objectives import Predict, assemble
from training.run import Run
from training.run_directory import RunDirectory
from training.tracked_run import Tracking

ALIAS = "candidate"
"""Of the newest version; making it the champion is for people to say."""


def finish(
    run: Run,
    weights: dict[str, Tensor],
    tracking: Tracking,
    progress: Progress,
    checkpoint: str | None,
    *,
    resumed_from: int,
) -> dict[str, Any]:
    """Leaves bundle and result, gives the run's summary. Doing it again after a kill changes nothing.

    `checkpoint`: the one that holds these weights.
    """
    run.attempt.require_newest()
    config, directory = run.config, run.directory
    model = assemble(run.objective, weights)
    evaluation = _evaluate(model, run)
    bundle = _save(run, model, tracking.run_id, checkpoint, evaluation)
    _complete_last_line(directory, evaluation)
    tracking.log_last(progress.step, evaluation)
    registered = _register(config, bundle, tracking.run_id, evaluation)
    summary = {
        "recipe": config.name,
        "run_dir": directory.path,
        "steps_done": progress.step,
        "resumed_from": resumed_from,
        run.objective.unit: progress.units,
        "parameters": sum(value.numel() for value in weights.values()),
        "workers": config.num_workers,
        "zero_stage": config.engine.zero_stage,
        "clips_left_out": run.data.num_left_out,
        **_history(directory),
        **evaluation,
        "bundle": bundle.uri,
        "fingerprint": bundle.fingerprint,
        "mlflow_run_id": tracking.run_id,
        "model_version": registered,
    }
    storage.write_json(directory.result, summary)
    return summary


def _evaluate(model: nn.Module, run: Run) -> dict[str, float]:
    data = run.data
    if isinstance(model, Tokenizer):
        return evaluate_tokenizer(model, data.shard_set)
    assert isinstance(model, GPT)
    assert isinstance(run.objective, Predict)
    vocabulary, task = run.objective.vocabulary, run.objective.task
    return evaluate_gpt(model, vocabulary, data.tokenizer_config, task, data.shard_set, data.validation)


def _complete_last_line(directory: RunDirectory, evaluation: dict[str, float]) -> None:
    """The finished model's numbers are those of the last step, in `metrics.jsonl` as in MLflow."""
    lines = directory.read_metrics()
    if lines:
        directory.write_metrics([*lines[:-1], lines[-1] | evaluation])


def _save(
    run: Run, model: nn.Module, run_id: str | None, checkpoint: str | None, evaluation: dict[str, float]
) -> BundleInfo:
    lineage, card = _lineage(run, run_id, checkpoint), _card(run.config, run.data, evaluation)
    if isinstance(run.objective, Predict):
        assert run.data.tokenizer is not None
        return save_bundle(
            run.directory.bundle,
            cast(GPT, model),
            lineage=lineage,
            card=card,
            vocabulary=run.objective.vocabulary,
            tasks=[run.objective.task.name],
            tokenizer_bundle=run.data.tokenizer.uri,
        )
    return save_bundle(run.directory.bundle, cast(Tokenizer, model), lineage=lineage, card=card)


def _lineage(run: Run, run_id: str | None, checkpoint: str | None) -> dict[str, Any]:
    """From a model back to the clips: run, config, checkpoint, shard set, tokenizer and its own lineage."""
    config, shard_set, tokenizer = run.config, run.data.shard_set, run.data.tokenizer
    return {
        "run": {
            "mlflow_run_id": run_id,
            "run_dir": run.directory.path,
            "recipe": config.name,
            "commit": code_commit(),
        },
        "config": configs.to_dict(config),
        "checkpoint": {"step": config.steps, "name": checkpoint},
        "shard_set": {
            "uri": shard_set.uri,
            "fingerprint": shard_set.manifest.fingerprint,
            "recipe_id": shard_set.manifest.recipe_id,
            "kind": shard_set.manifest.kind,
            "sampling": shard_set.manifest.config.get("rows", {}).get("sampling"),
        },
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "uri": tokenizer.uri} if tokenizer else None,
        "parents": [tokenizer.lineage] if tokenizer else [],
    }


def _register(
    config: RunConfig, bundle: BundleInfo, run_id: str | None, evaluation: dict[str, float]
) -> str | None:
    if run_id is None or config.register_as is None:
        return None
    version = registry.register(
        bundle.uri, name=config.register_as, run_id=run_id, alias=ALIAS, metrics=evaluation
    )
    return f"models:/{config.register_as}/{version}"


def _history(directory: RunDirectory) -> dict[str, Any]:
    """First and last losses, and the pace, from the lines that the run wrote."""
    lines = directory.read_metrics()
    if not lines:
        return {}
    return {
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "seconds_per_step": statistics.median(line["seconds_per_step"] for line in lines),
    }


def _card(config: RunConfig, data: TrainingData, evaluation: dict[str, float]) -> str:
    """The model card: what it is, what it was trained on, how well it does."""
    task = f", task `{config.objective.task}`" if isinstance(config.objective, PredictConfig) else ""
    numbers = "\n".join(f"| {name} | {value:.4g} |" for name, value in evaluation.items())
    totals = ", ".join(f"{name} {value}" for name, value in data.shard_set.manifest.totals.items())
    return f"""# {config.register_as or config.name}

Recipe `{config.name}`{task}, {config.steps} steps of {config.batches.global_batch} clips, trained by reelgpt.

Trained on the shard set `{data.shard_set.manifest.fingerprint[:12]}` ({totals}). What holds for
its sources holds for this model too; `lineage.json` says which they are.

On held-out sources, beside baselines that cost nothing:

| measure | value |
|---|---|
{numbers}
"""
