"""What happens beside the steps: measuring on held-out clips, writing, drawing."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial

import torch

from infra import storage
from training.bundles import Origin, export_bundle
from training.engine.engine import Engine
from training.loading.shelf import stored_clips
from training.loop import Metrics, mean_losses, require_finite
from training.objectives import Examples, assemble
from training.ranks import Ranks
from training.run import Run
from training.run_directory import Attempt
from training.samples import drawer
from training.saver import Saving
from training.saving.background import in_background
from training.tracking.tracked_run import Tracking

RANKS_OWN = ("loader_wait_seconds", "loader_wait_share", "memory_gb", "save_stall_seconds")
"""Metrics of which every rank has another."""


class Evaluation:
    """Adds the losses on held-out clips to the metrics; the ranks share the clips.

    Not at the last step: what is measured of the finished model stands there.
    """

    def __init__(self, run: Run, engine: Engine) -> None:
        self._config = run.config
        self._engine = engine
        self._ranks = run.ranks
        max_clips, size = run.config.evaluation.max_clips, run.config.batches.micro_batch
        clips = [c for _, c in stored_clips(run.data.validation, max_clips=max_clips)]
        self._micro_batches = [
            run.objective.examples(clips[start : start + size], None) for start in range(0, len(clips), size)
        ]
        self._num_targets = sum(map(run.objective.count_targets, self._micro_batches))

    def __call__(self, step: int, metrics: Metrics) -> None:
        if not self._micro_batches or not self._config.is_evaluated(step) or step == self._config.steps:
            return
        totals: dict[str, torch.Tensor] = {}
        with self._engine.averaged():
            for examples, counts in self._own_share():
                for name, value in self._engine.losses(examples).items():
                    totals[name] = totals.get(name, 0.0) + value * counts
        losses = mean_losses(totals, self._num_targets, self._ranks)
        metrics |= {f"val_{name}": value for name, value in losses.items()}
        require_finite(metrics, step)

    def _own_share(self) -> list[tuple[Examples, bool]]:
        """Every world_size-th micro-batch. ZeRO-3 needs all at work: who runs out repeats one, uncounted."""
        rounds = -(-len(self._micro_batches) // self._ranks.world_size)
        indices = [self._ranks.rank + i * self._ranks.world_size for i in range(rounds)]
        total = len(self._micro_batches)
        return [(self._micro_batches[index % total], index < total) for index in indices]


class WorstRank:
    """Of what each rank waited and holds, leaves the most that any did. All ranks call together."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __call__(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        if metrics:
            worst = self._ranks.max([metrics[name] for name in RANKS_OWN])
            metrics |= dict(zip(RANKS_OWN, worst, strict=True))


class MetricsFile:
    """Appends a line a logged step to `metrics.jsonl`; lines after the resumed step are dropped first."""

    def __init__(
        self, attempt: Attempt, *, resumed_step: int, clock: Callable[[], float] = time.time
    ) -> None:
        attempt.require_newest()
        kept = [line for line in attempt.directory.read_metrics() if line["step"] <= resumed_step]
        attempt.directory.write_metrics(kept)
        self._attempt = attempt
        self._clock = clock

    def __call__(self, step: int, metrics: Metrics) -> None:
        if not metrics:
            return
        line = {"step": step} | metrics | {"timestamp_ms": round(self._clock() * 1000)}
        self._attempt.require_newest()
        storage.append(self._attempt.directory.metrics, (json.dumps(line) + "\n").encode())


class StepWeights:
    """The whole weights after a step, gathered once for all who want them, on rank 0."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._step = -1
        self._weights: dict[str, torch.Tensor] | None = None

    def at(self, step: int) -> dict[str, torch.Tensor] | None:
        """None on other ranks than the first. All ranks must call together, right after the step."""
        if step != self._step:
            self._step, self._weights = step, self._engine.weights()
        return self._weights


class Samples:
    """Draws what the model makes of some held-out clips, with the weights of the moment."""

    def __init__(self, run: Run, weights: StepWeights, device: torch.device) -> None:
        self._run = run
        self._weights = weights
        self._draw = drawer(run, device)

    def __call__(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        if self._draw is None or not self._run.config.is_evaluated(step):
            return
        weights = self._weights.at(step)
        if weights is not None:
            storage.write(self._run.directory.sample(step), self._draw(weights))


class Bundles:
    """Makes a model of the weights at each evaluation but the last, whose model the run itself becomes.

    It is written while training goes on, one at a time.
    """

    def __init__(self, run: Run, weights: StepWeights, saving: Saving, tracking: Tracking) -> None:
        self._run = run
        self._weights = weights
        self._saving = saving
        self._tracking = tracking
        self._writing: Future[None] | None = None

    def __call__(self, step: int, metrics: Metrics) -> None:
        config = self._run.config
        if not config.evaluation.keep_bundles or not config.is_evaluated(step) or step == config.steps:
            return
        weights = self._weights.at(step)
        if weights is None:
            return
        self._require_written()
        self._run.attempt.require_newest()
        checkpoint = self._saving.name_at(step)
        origin = Origin(
            step=step,
            checkpoint=checkpoint,
            run_key=self._tracking.key,
            mlflow_run_id=self._tracking.run_id,
        )
        model = assemble(self._run.objective, weights)  # here: it takes numbers from torch's generator
        self._writing = in_background(partial(export_bundle, self._run, model, origin, dict(metrics)))

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """The last one is written when the block is left, however it ends. Raises what writing it raised,
        unless the block raises something itself."""
        try:
            yield
        finally:
            if self._writing:
                wait([self._writing])
        self._require_written()

    def _require_written(self) -> None:
        if self._writing:
            self._writing.result()
