"""What happens beside the steps: measuring on held-out clips, writing, drawing, saving."""

import json
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from infra import storage
from training import checkpoints
from training.batches import stored_clips
from training.checkpoints import FileRecord
from training.engine import Engine
from training.loop import Metrics, Progress, mean_losses, require_finite
from training.objectives import Examples
from training.run import Run
from training.run_directory import Attempt
from training.samples import drawer


class Evaluation:
    """Adds the losses on held-out clips to the metrics; the ranks share the clips.

    Not at the last step: what is measured of the finished model stands there.
    """

    def __init__(self, run: Run, engine: Engine) -> None:
        self._config = run.config
        self._engine = engine
        self._ranks = run.ranks
        max_clips, size = run.config.evaluation.max_clips, run.config.batches.micro_batch
        clips = [c for _, c in stored_clips(run.data.shard_set, run.data.validation, max_clips=max_clips)]
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
        with open(self._attempt.directory.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")


class Samples:
    """Draws what the model makes of some held-out clips, with the weights of the moment."""

    def __init__(self, run: Run, engine: Engine) -> None:
        self._run = run
        self._engine = engine
        self._draw = drawer(run)

    def __call__(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        if self._draw is None or not self._run.config.is_evaluated(step):
            return
        weights = self._engine.weights()
        if weights is not None:
            storage.write(self._run.directory.sample(step), self._draw(weights))


class Saving:
    """Commits a checkpoint when one is due, and forgets the oldest."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        progress: Progress,
        facts: dict[str, Any],
        *,
        resumed: checkpoints.Found,
    ) -> None:
        """`facts`: what the state holds beside the progress: the run's identity and tracking."""
        self._run = run
        self._root = run.directory.checkpoints
        self._engine = engine
        self._progress = progress
        self._facts = facts
        self._damaged = [damage.name for damage in resumed.passed_over]
        self._saved_step = resumed.checkpoint.step if resumed.checkpoint else 0
        self.newest = resumed.checkpoint.name if resumed.checkpoint else None
        """Name of the checkpoint that holds the last state saved."""

    def __call__(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        if self._run.config.is_saved(step):
            self.save()

    def save(self) -> None:
        """Commits the state after the last step, if that is not done yet. All ranks must call together."""
        progress, ranks = self._progress, self._run.ranks
        if progress.step == self._saved_step:
            return
        state = self._state()
        self.newest = checkpoints.commit(
            self._root,
            step=progress.step,
            state=state,
            ranks=ranks,
            write=lambda name: self._write(name, state),
        )
        self._saved_step = progress.step
        if ranks.is_first:
            keep_last = self._run.config.checkpoints.keep_last
            self._run.attempt.require_newest()
            checkpoints.prune(self._root, keep_last=keep_last, unwanted=self._damaged)

    def _write(self, name: str, state: dict[str, Any]) -> list[FileRecord]:
        records = self._engine.save(self._root, name, state)
        if self._run.ranks.is_first:
            self._run.attempt.require_newest()  # without its word there will be no manifest
        return records

    def _state(self) -> dict[str, Any]:
        step = self._progress.step
        return {
            "step": step,
            "clips": step * self._run.config.batches.global_batch,
            "units": self._progress.units,
            "versions": versions(),
            **self._facts,
        }


def versions() -> dict[str, str]:
    """What may change the last bit of a number."""
    from importlib.metadata import version

    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "deepspeed", "numpy")
    }
