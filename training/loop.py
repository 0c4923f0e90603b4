"""The loop of a run: batches in, steps of the engine, listeners told of each. All else listens to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from infra.errors import TrainingError
from training.engine.engine import Engine
from training.launching.stopping import StopRequest
from training.launching.watchdog import COMPILING, SAVING, Pulse
from training.loading.batches import Batches
from training.loading.read_ahead import ReadAhead
from training.loading.samples_digest import chained, digest_halves
from training.objectives import Examples, generator, torch_seed
from training.pace import Pace
from training.ranks import Ranks
from training.run import Run

Metrics = dict[str, float]


class Listener(Protocol):
    def __call__(self, step: int, metrics: Metrics) -> None:
        """Hears of every step that is done, after the listeners before it.

        `metrics` is empty where the step is not logged; a listener may add to it for those after it. What
        happens on all ranks is called on all of them.
        """


class Standing(NamedTuple):
    """How far saving is: of one rank, or added up over all."""

    writing: float = 0.0
    """1.0 while a checkpoint's files are not all on the disk."""
    failed: float = 0.0
    """1.0 where they will not come to be."""


class Saver(Protocol):
    def standing(self) -> Standing:
        """Of this rank."""

    def hear(self, standing: Standing) -> None:
        """Of all ranks, once in each step, before the update."""

    def save_now(self) -> None:
        """A machine, or the whole group for a larger one, is about to be taken away."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """What a run has done, in numbers that go into its checkpoints."""

    step: int = 0
    units: int = 0
    """Frames or tokens seen, over all ranks."""
    samples_digest: int = 0
    """Of the ids of all clips seen, in their order: see `training.loading.samples_digest`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInput:
    """What this rank brings to one step."""

    examples: list[Examples]
    seeds: list[int]
    num_targets: int
    num_units: int
    num_flops: float
    samples_digest: tuple[float, float]
    """Of the clips' ids, to be added up over the ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreed:
    """What all ranks together bring to a step, and wish."""

    num_targets: float
    num_units: float
    num_flops: float
    is_to_stop: bool
    is_to_save: bool
    is_to_ask: bool
    """Whether machines are about to go."""
    samples_digest: tuple[float, float]
    saving: Standing


def run_steps(
    run: Run,
    engine: Engine,
    batches: Batches,
    progress: Progress,
    listeners: Sequence[Listener],
    stop: StopRequest,
    pulse: Pulse,
    saver: Saver,
) -> bool:
    """Trains from `progress` to the last step; False where a stop was agreed before it."""
    config, objective, ranks = run.config, run.objective, run.ranks
    steps = config.batches.steps_taken(progress.step + 1, config.steps)
    make, depth = partial(step_input, run, batches), config.batches.prefetch_steps
    pace = Pace(objective.unit, units=progress.units)
    with ReadAhead(make, steps, depth=depth) as ahead:
        pulse.at(progress.step + 1, "data")
        for step, given in ahead:
            pulse.at(step, "exchange")
            agreed = agree(given, stop, saver.standing(), ranks)
            if agreed.is_to_stop:
                return False
            saver.hear(agreed.saving)
            if agreed.is_to_save or (agreed.is_to_ask and stop.is_preempted()):
                pulse.at(step, SAVING)
                saver.save_now()
                if ranks.is_first:  # who commits
                    stop.tell_saved()
            pulse.at(step, COMPILING if engine.compiles_for(given.examples) else "update")
            lr = config.optimizer.learning_rate(step, config.steps)
            losses = engine.update(given.examples, seeds=given.seeds, lr=lr, num_targets=agreed.num_targets)
            pace.stepped(waited_seconds=ahead.waited_seconds, flops=agreed.num_flops)
            progress.step, progress.units = step, progress.units + int(agreed.num_units)
            progress.samples_digest = chained(progress.samples_digest, agreed.samples_digest)
            metrics: Metrics = {}
            if config.is_logged(step):
                metrics = mean_losses(losses, agreed.num_targets, ranks) | engine.metrics() | {"lr": lr}
                require_finite(metrics, step)
                metrics |= {"epoch": batches.epoch(step)} | _told(progress, objective.unit)
                metrics |= pace.metrics(progress.units, world_size=ranks.world_size)
            pulse.at(step, "beside")
            for listener in listeners:
                listener(step, metrics)
            pulse.at(step + 1, "data")
    return True


def agree(given: StepInput, stop: StopRequest, saving: Standing, ranks: Ranks) -> Agreed:
    """The one exchange of a step. All ranks must call together."""
    wishes = stop.is_wanted(), ranks.is_first and stop.is_save_wanted(), stop.is_time_to_ask()
    counts = given.num_targets, given.num_units, given.num_flops
    num_targets, num_units, num_flops, num_stops, num_saves, num_asks, high, low, *standing = ranks.sum(
        [*counts, *wishes, *given.samples_digest, *saving]
    )
    return Agreed(
        num_targets=num_targets,
        num_units=num_units,
        num_flops=num_flops,
        is_to_stop=num_stops > 0,
        is_to_save=num_saves > 0,
        is_to_ask=num_asks > 0,
        samples_digest=(high, low),
        saving=Standing(*standing),
    )


def _told(progress: Progress, unit: str) -> Metrics:
    return {unit: float(progress.units), "samples_digest": float(progress.samples_digest)}


def step_input(run: Run, batches: Batches, step: int) -> StepInput:
    """A pure function of the step, so that it can be made ahead."""
    seed, objective = run.config.seed, run.objective
    parts = batches.micro_batches(step)
    examples = [objective.examples(list(p.clips), generator(seed, step, p.index)) for p in parts]
    num_units = list(map(objective.count_units, examples))
    return StepInput(
        examples=[_pinned(each) for each in examples],
        seeds=[torch_seed(seed, step, part.index) for part in parts],
        num_targets=sum(map(objective.count_targets, examples)),
        num_units=sum(num_units),
        num_flops=sum(map(mul, num_units, map(objective.flops_per_unit, examples))),
        samples_digest=digest_halves(parts),
    )


def _pinned(examples: Examples) -> Examples:
    """In page-locked memory where there is a GPU: copying them to it does not hold up the host."""
    if not torch.cuda.is_available():
        return examples
    return {name: tensor.pin_memory() for name, tensor in examples.items()}


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
