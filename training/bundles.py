"""The bundles of a run: what its weights of some step are as a model, with the lineage that explains it.

model/                   of the finished run
bundles/step-00000050/   of an evaluation: the last ones, and the one that lost least on held-out clips
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

from torch import Tensor, nn

from infra import configs
from infra.commit import code_commit
from infra.errors import ConfigError
from model.bundle import BundleInfo, read_weights, save_bundle
from model.gpt import GPT
from model.tokenizer import Tokenizer
from pipelines.shards import ShardSet
from training.config import RunConfig
from training.configs.objective import PredictConfig
from training.data import TrainingData
from training.objectives import Predict
from training.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where in its run a model comes from."""

    step: int
    checkpoint: str | None
    """The checkpoint that holds the same weights; None where none was due at that step."""
    run_key: str
    """By which the run is found in MLflow, whether or not that had answered."""
    mlflow_run_id: str | None


def export_bundle(run: Run, model: nn.Module, origin: Origin, losses: Mapping[str, float]) -> None:
    """Writes the bundle of an evaluation, and forgets those that are neither among the last nor the best."""
    measured = {name: value for name, value in losses.items() if name.startswith("val_")}
    uri = run.directory.bundle_of(origin.step)
    write_bundle(run, uri, model, origin, measured)
    known = {int(line["step"]): line for line in run.directory.read_metrics()}
    known[origin.step] = known.get(origin.step, {}) | measured
    steps = run.directory.bundle_steps()
    for step in set(steps) - _kept(steps, known, keep_last=run.config.evaluation.keep_bundles):
        run.directory.forget_bundle(run.directory.bundle_of(step))


def start_from(model: nn.Module, bundle: BundleInfo) -> None:
    """Gives a new model the weights of a bundle. Raises ConfigError naming what does not fit."""
    weights, wanted = read_weights(bundle), model.state_dict()
    strange = [
        f"{name} is {_shape(weights.get(name))} there and {_shape(wanted.get(name))} here"
        for name in sorted(weights.keys() | wanted.keys())
        if _shape(weights.get(name)) != _shape(wanted.get(name))
    ]
    if strange:
        raise ConfigError(
            f"--init-from {bundle.uri} is of another shape: {'; '.join(strange[:3])}"
            f"{f' and {len(strange) - 3} more' if len(strange) > 3 else ''}; "
            f"give the --objective.model settings in its lineage.json"
        )
    model.load_state_dict(weights)


def _shape(weight: Tensor | None) -> str:
    return "not" if weight is None else " x ".join(map(str, weight.shape))


def _kept(steps: list[int], lines: Mapping[int, Mapping[str, float]], *, keep_last: int) -> set[int]:
    judged = {step: lines[step]["val_loss"] for step in steps if "val_loss" in lines.get(step, {})}
    best = {min(judged, key=lambda step: (judged[step], step))} if judged else set()
    return set(sorted(steps)[-keep_last:]) | best


def write_bundle(
    run: Run, uri: str, model: nn.Module, origin: Origin, evaluation: dict[str, float]
) -> BundleInfo:
    """The model of a run as a bundle; it exists once it is whole."""
    lineage, card = _lineage(run, origin), _card(run.config, run.data, origin.step, evaluation)
    if isinstance(run.objective, Predict):
        assert run.data.tokenizer is not None
        return save_bundle(
            uri,
            cast(GPT, model),
            lineage=lineage,
            card=card,
            vocabulary=run.objective.vocabulary,
            tasks=[run.objective.task.name],
            tokenizer_bundle=run.data.tokenizer.uri,
        )
    return save_bundle(uri, cast(Tokenizer, model), lineage=lineage, card=card)


def _lineage(run: Run, origin: Origin) -> dict[str, Any]:
    """From a model back to the clips: run, config, checkpoint, shard set, tokenizer and its own lineage.

    Of a mixture, `shard_set` is the first and `mixture` holds all.
    """
    config, data, tokenizer = run.config, run.data, run.data.tokenizer
    learned_from = [_shard_set(shard_set) for shard_set in data.shard_sets]
    shares = zip(learned_from, data.shares, strict=True)
    parents = [bundle for bundle in (tokenizer, run.data.init_from) if bundle is not None]
    return {
        "run": {
            "run_key": origin.run_key,
            "mlflow_run_id": origin.mlflow_run_id,
            "run_dir": run.directory.path,
            "recipe": config.name,
            "commit": code_commit(),
        },
        "config": configs.to_dict(config),
        "checkpoint": {"step": origin.step, "name": origin.checkpoint},
        "shard_set": learned_from[0],
        "mixture": [known | {"share": float(share)} for known, share in shares] if learned_from[1:] else [],
        "tokenizer": _named(tokenizer),
        "init_from": _named(run.data.init_from),
        "parents": [bundle.lineage for bundle in parents],
    }


def _shard_set(shard_set: ShardSet) -> dict[str, Any]:
    manifest = shard_set.manifest
    return {
        "uri": shard_set.uri,
        "fingerprint": manifest.fingerprint,
        "recipe_id": manifest.recipe_id,
        "kind": manifest.kind,
        "sampling": manifest.config.get("rows", {}).get("sampling"),
    }


def _named(bundle: BundleInfo | None) -> dict[str, str] | None:
    return None if bundle is None else {"fingerprint": bundle.fingerprint, "uri": bundle.uri}


def _card(config: RunConfig, data: TrainingData, step: int, evaluation: dict[str, float]) -> str:
    """The model card: what it is, what it was trained on, how well it does."""
    steps = f"step {step} of {config.steps}, of {config.batches.global_batch} clips each"
    task = f", task `{config.objective.task}`" if isinstance(config.objective, PredictConfig) else ""
    numbers = "\n".join(f"| {name} | {value:.4g} |" for name, value in evaluation.items())
    sets = "\n".join(_set_line(*each) for each in zip(data.shard_sets, data.shares, strict=True))
    return f"""# {config.register_as or config.name}

Recipe `{config.name}`{task}, trained by reelgpt: {steps}.

Trained on:

{sets}

What holds for their sources holds for this model too; `lineage.json` says which they are.

On held-out sources, beside baselines that cost nothing:

| measure | value |
|---|---|
{numbers}
"""


def _set_line(shard_set: ShardSet, share: Fraction) -> str:
    totals = ", ".join(f"{name} {value}" for name, value in shard_set.manifest.totals.items())
    return f"- shard set `{shard_set.manifest.fingerprint[:12]}`, {float(share):.4g} of the clips ({totals})"
