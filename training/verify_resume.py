"""Does a run of this config on this data resume exactly? Found out with real processes and a real SIGKILL.

In scratch directories, never the user's: one run of 2N steps, and one of N steps that is killed and whose
command is repeated for N more, perhaps on another number of workers or at another ZeRO stage. Both are the
first steps of the whole run that are taken: nothing of its schedule changes. Imports no torch.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from infra import configs, storage
from infra.errors import TrainingError, UsageError
from training.config import RunConfig
from training.configs.engine import EngineConfig
from training.run_directory import RunDirectory
from training.verify_commands import Place, run_and_kill, run_until

KEPT_CHECKPOINTS = 8
"""So many that the one that the kill waits for outlasts several looks, however short the steps are."""
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
"""On another topology: how far two losses of a step may be apart, as a share of the loss."""
WEIGHTS_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
"""The same of all weights: the norm of the difference, as a share of their norm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Of one thing that the two runs should have in common."""

    what: str
    difference: float
    """Largest relative difference; of the samples, the number of steps that saw others."""
    tolerance: float
    """0: to the last bit."""

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    steps: int
    """That are compared: the first ones of the run that are not skipped."""
    killed_after: int
    """The last step that the killed command had logged."""
    resumed_from: int
    """The last step that the command after it did not take again."""
    resume: str
    """How that command was given: auto is the very one that was killed. Where the kill came after the last
    step compared was saved, it was told to go back."""
    topologies: tuple[str, str]
    """Before the kill and after it."""
    comparisons: tuple[Comparison, ...]

    @property
    def agrees(self) -> bool:
        return all(comparison.agrees for comparison in self.comparisons)

    def summary(self) -> dict[str, Any]:
        compared = [asdict(item) | {"agrees": item.agrees} for item in self.comparisons]
        return asdict(self) | {"comparisons": compared, "agrees": self.agrees}


def verify_resume(
    config: RunConfig,
    place: Place,
    *,
    half: int,
    workers: int | None = None,
    zero_stage: int | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> Verdict:
    """Runs 2 x `half` steps, and `half` + SIGKILL + `half`, the latter on `workers` at `zero_stage`.

    `on_done` hears how many of the three commands are done. What they wrote is deleted if all agrees. Raises
    UsageError where the run is shorter than that, TrainingError where a command fails or no weight moves.
    """
    steps = _steps_to_take(config, half)
    middle, end = steps[half - 1], steps[-1]
    shown = _shown(config, middle, end)
    changed = _changed(shown, workers, zero_stage)
    whole, broken = (RunDirectory.at(storage.join(place.scratch, name)) for name in ("whole", "interrupted"))
    storage.delete(place.scratch)
    os.makedirs(place.scratch)
    run_until(shown, place, whole, pause_after=end)
    _require_a_change(whole, steps)
    on_done(1)
    killed_after = run_and_kill(shown, place, broken, after=middle)
    on_done(2)
    saved = broken.newest_step()
    resume, resumed_from = ("auto", saved) if saved < end else (str(middle), middle)
    run_until(changed, place, broken, pause_after=end, resume=resume)
    on_done(3)
    topologies = _topology(shown), _topology(changed)
    dtype = None if topologies[0] == topologies[1] else config.engine.dtype
    verdict = Verdict(
        steps=len(steps),
        killed_after=killed_after,
        resumed_from=resumed_from,
        resume=resume,
        topologies=topologies,
        comparisons=_compare(whole, broken, weights=_which_weights(config), steps=steps, dtype=dtype),
    )
    if verdict.agrees:
        storage.delete(place.scratch)
    return verdict


def _steps_to_take(config: RunConfig, half: int) -> list[int]:
    """The first 2 x `half` of the run. Raises UsageError where it has fewer."""
    taken = list(config.batches.steps_taken(1, config.steps))
    if half < 1 or 2 * half > len(taken):
        raise UsageError(
            f"--verify-resume {half} compares runs of {2 * half} steps, and the run has {len(taken)}; "
            f"give a number from 1 to {len(taken) // 2}"
        )
    return taken[: 2 * half]


def _require_a_change(whole: RunDirectory, steps: Sequence[int]) -> None:
    """Raises TrainingError where no weight has moved, so that whatever goes on would agree."""
    last = whole.read_metrics()[-1]
    if last.get("skipped_steps", 0) >= len(steps):
        raise TrainingError(
            f"gradients overflow in fp16 in each of the {len(steps)} steps compared, and no weight moves; "
            f"give a larger number to --verify-resume, or a smaller fp16.initial_scale_power"
        )


def _changed(config: RunConfig, workers: int | None, zero_stage: Any) -> RunConfig:
    stage = config.engine.zero_stage if zero_stage is None else zero_stage
    engine = configs.from_dict(EngineConfig, configs.to_dict(config.engine) | {"zero_stage": stage})
    changed = replace(config, num_workers=workers or config.num_workers, min_workers=None, engine=engine)
    runs_at = engine.stage_among(changed.num_workers)
    if zero_stage not in (None, runs_at):
        raise UsageError(
            f"--verify-zero-stage {zero_stage} has no effect: a lone worker in {engine.dtype} runs at stage "
            f"{runs_at}; give --verify-workers 2 or more as well, or leave it out"
        )
    return changed


def _shown(config: RunConfig, middle: int, end: int) -> RunConfig:
    """The same steps, by kernels that repeat them, saved in the `middle`, measured in the `end`, all looked
    at, and told to nobody."""
    saved = replace(
        config.checkpoints,
        every_steps=middle,
        keep_last=KEPT_CHECKPOINTS,
        keep_every_steps=None,
        copy_to=None,
    )
    measured = replace(config.evaluation, every_steps=end, num_samples=0, keep_bundles=1)
    return replace(
        config,
        engine=replace(config.engine, deterministic=True),
        checkpoints=saved,
        evaluation=measured,
        log_every_steps=1,
        track=False,
        register_as=None,
        min_workers=None,
    )


def _topology(config: RunConfig) -> str:
    return f"{config.num_workers} workers, ZeRO {config.engine.stage_among(config.num_workers)}"


def _compare(
    whole: RunDirectory, broken: RunDirectory, *, weights: str, steps: Sequence[int], dtype: str | None
) -> tuple[Comparison, ...]:
    """`dtype`: of runs on different topologies, which need not agree to the last bit."""
    lines = [{int(line["step"]): line for line in run.read_metrics()} for run in (whole, broken)]
    pairs = [(lines[0].get(step, {}), lines[1].get(step, {})) for step in steps]
    return (
        Comparison(
            what="losses",
            difference=max(_apart(a.get("loss"), b.get("loss")) for a, b in pairs),
            tolerance=LOSS_TOLERANCE[dtype] if dtype else 0.0,
        ),
        Comparison(
            what=weights,
            difference=_weights_apart(_weights(whole, steps[-1]), _weights(broken, steps[-1])),
            tolerance=WEIGHTS_TOLERANCE[dtype] if dtype else 0.0,
        ),
        Comparison(
            what="samples",
            difference=float(sum(a.get("samples_digest") != b.get("samples_digest") for a, b in pairs)),
            tolerance=0.0,
        ),
    )


def _which_weights(config: RunConfig) -> str:
    """A bundle's; the losses tell of those that they are the average of."""
    return "weights" if config.optimizer.ema_decay is None else "averaged weights"


def _apart(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return float("inf")
    return abs(one - other) / abs(one) if one != other else 0.0


def _weights(run: RunDirectory, step: int) -> dict[str, NDArray[Any]]:
    """Of the bundle of the evaluation after `step`, or of the finished run's."""
    place = run.bundle_of(step) if storage.exists(run.bundle_of(step)) else run.bundle
    return safetensors.numpy.load(storage.read_bytes(storage.join(place, "model.safetensors")))


def _weights_apart(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> float:
    if all(np.array_equal(one[name], other[name]) for name in one):
        return 0.0
    norms = [(np.linalg.norm(one[name] - other[name]), np.linalg.norm(one[name])) for name in one]
    apart, size = (float(np.linalg.norm(values)) for values in zip(*norms, strict=True))
    return apart / size
