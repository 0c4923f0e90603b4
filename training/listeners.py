"""What happens beside the steps: measuring on held-out clips, writing, telling MLflow, drawing, saving."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from infra import configs, storage, tracking
from infra.errors import RegistryError
from infra.tracking import ShardSetInput, Status, Tracker
from training import checkpoints
from training.batches import held_out
from training.config import RunConfig
from training.data import TrainingData
from training.engine import Engine
from training.loop import Metrics, Progress, mean_losses
from training.objectives import Examples, Objective
from training.ranks import Ranks
from training.run_directory import RunDirectory, read_lines


class Evaluation:
    """Adds the losses on held-out clips to the metrics; the ranks share the clips."""

    def __init__(
        self, config: RunConfig, data: TrainingData, objective: Objective, engine: Engine, ranks: Ranks
    ) -> None:
        self._config = config
        self._engine = engine
        self._ranks = ranks
        clips = [
            c for _, c in held_out(data.shard_set, data.validation, max_clips=config.evaluation.max_clips)
        ]
        size = config.batches.micro_batch
        self._micro_batches = [
            objective.examples(clips[start : start + size], None) for start in range(0, len(clips), size)
        ]
        self._num_targets = sum(map(objective.count_targets, self._micro_batches))

    def __call__(self, step: int, metrics: Metrics) -> None:
        if not self._micro_batches or not is_due(
            step, self._config.evaluation.every_steps, self._config.steps
        ):
            return
        totals: dict[str, torch.Tensor] = {}
        for examples, counts in self._own_share():
            for name, value in self._engine.losses(examples).items():
                totals[name] = totals.get(name, 0.0) + value * counts
        metrics |= {
            f"val_{name}": value
            for name, value in mean_losses(totals, self._num_targets, self._ranks).items()
        }

    def _own_share(self) -> list[tuple[Examples, bool]]:
        """Every world_size-th micro-batch. ZeRO-3 needs all at work: who runs out repeats one, uncounted."""
        rounds = -(-len(self._micro_batches) // self._ranks.world_size)
        indices = [self._ranks.rank + i * self._ranks.world_size for i in range(rounds)]
        total = len(self._micro_batches)
        return [(self._micro_batches[index % total], index < total) for index in indices]


class MetricsFile:
    """Appends a line a logged step to `metrics.jsonl`; lines after the resumed step are dropped first."""

    def __init__(self, path: str, *, resumed_step: int, clock: Callable[[], float] = time.time) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= resumed_step]
        storage.write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._path = path
        self._clock = clock

    def __call__(self, step: int, metrics: Metrics) -> None:
        if not metrics:
            return
        line = {"step": step} | metrics | {"timestamp_ms": round(self._clock() * 1000)}
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


class Tracking:
    """Tells MLflow, where it is installed, from rank 0. While it does not answer, the files hold all."""

    def __init__(self, config: RunConfig, directory: RunDirectory, data: TrainingData, ranks: Ranks) -> None:
        """Raises RegistryError, on all ranks, where MLflow is installed and cannot be reached."""
        self._directory = directory
        self._tracker: Tracker | None = None
        self._is_behind = False
        is_on = config.track and tracking.available()
        self.run_id = ranks.on_first(lambda: self._start(config, data)) if is_on else None

    def __call__(self, step: int, metrics: Metrics) -> None:
        if self._tracker is None or not metrics or self._is_behind:
            return
        try:
            self._tracker.log_metrics(step, metrics)
            self._log_pictures(self._tracker, [sample_path(self._directory, step)])
        except RegistryError as error:
            self._is_behind = True
            sys.stderr.write(f"{error}; metrics wait in {self._directory.metrics} and are sent at the end\n")

    def log_last(self, step: int, metrics: Metrics) -> None:
        """What was measured once all steps are done, after whatever MLflow has missed."""
        if self._tracker is not None:
            self._catch_up(self._tracker)
            self._tracker.log_metrics(step, metrics)

    def finish(self, status: Status) -> None:
        if self._tracker is not None:
            self._tracker.finish(status)

    def _start(self, config: RunConfig, data: TrainingData) -> str:
        manifest = data.shard_set.manifest
        path = self._directory.tracking
        self._tracker = Tracker.start(
            storage.read_json(path)["run_id"] if storage.exists(path) else None,
            recipe=config.name,
            run_dir=self._directory.path,
            config=configs.to_dict(config),
            shard_set=ShardSetInput(uri=data.shard_set.uri, fingerprint=manifest.fingerprint),
        )
        storage.write_json(path, {"run_id": self._tracker.run_id, "tracking_uri": tracking.tracking_uri()})
        self._catch_up(self._tracker)
        return self._tracker.run_id

    def _catch_up(self, tracker: Tracker) -> None:
        """Sends all that the files hold and MLflow does not."""
        for line in read_lines(self._directory.metrics):
            rest = {name: value for name, value in line.items() if name not in ("step", "timestamp_ms")}
            tracker.log_metrics(int(line["step"]), rest, int(line["timestamp_ms"]))
        self._log_pictures(tracker, [file.uri for file in storage.list_files(self._directory.samples)])

    def _log_pictures(self, tracker: Tracker, paths: Sequence[str]) -> None:
        for path in paths:
            if os.path.exists(path):
                tracker.log_picture("samples", int(path[-12:-4]), path)


class Samples:
    """Draws what the model makes of some held-out clips, with the weights of the moment."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        engine: Engine,
        draw: Callable[[dict[str, torch.Tensor]], bytes] | None,
    ) -> None:
        self._config = config
        self._directory = directory
        self._engine = engine
        self._draw = draw

    def __call__(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        if self._draw is None or not is_due(step, self._config.evaluation.every_steps, self._config.steps):
            return
        weights = self._engine.weights()
        if weights is not None:
            storage.write(sample_path(self._directory, step), self._draw(weights))


class Saving:
    """Commits a checkpoint when one is due, and forgets the oldest."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        engine: Engine,
        ranks: Ranks,
        progress: Progress,
        facts: dict[str, Any],
        *,
        resumed: checkpoints.Found,
    ) -> None:
        """`facts`: what the state holds beside the progress: the run's identity and tracking."""
        self._config = config
        self._root = directory.checkpoints
        self._engine = engine
        self._ranks = ranks
        self._progress = progress
        self._facts = facts
        self._damaged = [damage.name for damage in resumed.passed_over]
        self._saved_step = resumed.checkpoint.step if resumed.checkpoint else 0

    def __call__(self, step: int, metrics: Metrics) -> None:  # noqa: ARG002
        if is_due(step, self._config.checkpoints.every_steps, self._config.steps):
            self.save()

    def save(self) -> None:
        """Commits the state after the last step, if that is not done yet. All ranks must call together."""
        progress = self._progress
        if progress.step == self._saved_step:
            return
        state = self._state()
        checkpoints.commit(
            self._root,
            step=progress.step,
            state=state,
            ranks=self._ranks,
            write=lambda name: self._engine.save(self._root, name, state),
        )
        self._saved_step = progress.step
        if self._ranks.is_first:
            checkpoints.prune(
                self._root, keep_last=self._config.checkpoints.keep_last, unwanted=self._damaged
            )

    def _state(self) -> dict[str, Any]:
        step = self._progress.step
        return {
            "step": step,
            "clips": step * self._config.batches.global_batch,
            "units": self._progress.units,
            "versions": versions(),
            **self._facts,
        }


def is_due(step: int, every_steps: int, last_step: int) -> bool:
    return step % every_steps == 0 or step == last_step


def sample_path(directory: RunDirectory, step: int) -> str:
    return storage.join(directory.samples, f"step-{step:08d}.png")


def versions() -> dict[str, str]:
    """What may change the last bit of a number."""
    from importlib.metadata import version

    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "deepspeed", "numpy")
    }
