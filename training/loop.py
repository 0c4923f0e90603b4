"""The loop of a run: batches in, steps of the engine, listeners told of each. All else listens to it."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from infra.errors import TrainingError
from training.batches import Batches
from training.engine import Engine
from training.objectives import Examples, Objective, generator, torch_seed
from training.ranks import Ranks
from training.run import Run
from training.stopping import StopRequest

Metrics = dict[str, float]


class Listener(Protocol):
    def __call__(self, step: int, metrics: Metrics) -> None:
        """Hears of every step that is done, after the listeners before it.

        `metrics` is empty where the step is not logged; a listener may add to it for those after it. What
        happens on all ranks is called on all of them.
        """


@dataclass(kw_only=True, slots=True)
class Progress:
    """What a run has done, in numbers that go into its checkpoints."""

    step: int = 0
    units: int = 0
    """Frames or tokens seen, over all ranks."""


def run_steps(
    run: Run,
    engine: Engine,
    batches: Batches,
    progress: Progress,
    listeners: Sequence[Listener],
    stop: StopRequest,
) -> bool:
    """Trains from `progress` to the last step; False where a stop was agreed before it."""
    config, objective, ranks = run.config, run.objective, run.ranks
    logged = (progress.step, progress.units, time.monotonic())
    for step in range(progress.step + 1, config.steps + 1):
        batch = batches.micro_batches(step)
        examples = [
            objective.examples(part.clips, generator(config.seed, step, part.index)) for part in batch
        ]
        num_targets, num_units = ranks.sum(_count(objective, examples))
        seeds = [torch_seed(config.seed, step, part.index) for part in batch]
        lr = config.optimizer.learning_rate(step, config.steps)
        losses = engine.update(examples, seeds=seeds, lr=lr, num_targets=num_targets)
        progress.step, progress.units = step, progress.units + int(num_units)
        metrics: Metrics = {}
        if config.is_logged(step):
            metrics = mean_losses(losses, num_targets, ranks) | {"grad_norm": engine.grad_norm, "lr": lr}
            require_finite(metrics, step)
            metrics |= {"epoch": batches.epoch(step), objective.unit: float(progress.units)}
            metrics |= _pace(progress, logged, objective.unit)
            logged = (step, progress.units, time.monotonic())
        for listener in listeners:
            listener(step, metrics)
        if stop.is_agreed(ranks) and step < config.steps:
            return False
    return True


def mean_losses(sums: dict[str, Tensor], num_targets: float, ranks: Ranks) -> Metrics:
    """Losses per target over all ranks; the host waits for the device."""
    totals = ranks.sum([value.item() for value in sums.values()])
    return {name: total / num_targets for name, total in zip(sums, totals, strict=True)}


def require_finite(metrics: Metrics, step: int) -> None:
    """Raises TrainingError, on every rank alike, where the model has come apart."""
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if not broken:
        return
    name, value = next(iter(broken.items()))
    at = f"step {step}" + (f" (learning rate {metrics['lr']:g})" if "lr" in metrics else "")
    raise TrainingError(
        f"{name} is {value} at {at}; train anew in another --run-dir, with a lower --optimizer.peak-lr"
    )


def _count(objective: Objective, examples: Sequence[Examples]) -> list[float]:
    return [sum(map(objective.count_targets, examples)), sum(map(objective.count_units, examples))]


def _pace(progress: Progress, since: tuple[int, int, float], unit: str) -> Metrics:
    step, units, then = since
    seconds = time.monotonic() - then
    return {
        "seconds_per_step": seconds / (progress.step - step),
        f"{unit}_per_second": (progress.units - units) / seconds,
    }
