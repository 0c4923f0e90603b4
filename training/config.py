"""What a run is: frozen, validated settings by composition. Imports nothing heavy: refusals are instant.

The settings of each room lie in `training.configs`.
"""

import re
from dataclasses import dataclass, field

from infra.configs import check_at_least, check_finite
from infra.errors import ConfigError
from training.configs.batches import BatchesConfig
from training.configs.checkpoints import CheckpointsConfig
from training.configs.engine import EngineConfig, OptimizerConfig
from training.configs.evaluation import EvaluationConfig
from training.configs.objective import PredictConfig, ReconstructConfig
from training.configs.watchdog import WatchdogConfig

SEEDS = 1 << 63
"""How many torch tells apart."""
MODEL_NAME = re.compile(r"[A-Za-z0-9._-]+")
"""What the registry takes: said before a run, not after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    name: str
    """The recipe, or what a variant of it is called: in MLflow, in the model card, in the lineage."""
    objective: ReconstructConfig | PredictConfig
    optimizer: OptimizerConfig
    batches: BatchesConfig
    checkpoints: CheckpointsConfig
    evaluation: EvaluationConfig
    steps: int
    """A later command of the run may give another number before the learning rate begins to depend on it."""
    num_workers: int
    min_workers: int | None = None
    """Under Ray Train: go on with fewer than num_workers, down to this, while there is no room for more."""
    use_gpu: bool | None = None
    """Under Ray Train: a GPU for each worker, for which a growing cluster is waited for. None: if the cluster
    has as many when the run starts."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    threads_per_worker: int = 1
    """Of torch on a CPU. The last bit depends on it; on cores that others use, more are slower than one."""
    log_every_steps: int = 1
    seed: int = 0
    max_failures: int = 3
    """Under Ray Train: how often a lost worker restarts the group, from the newest whole checkpoint."""
    register_as: str | None = None
    """Model in the registry that the finished run becomes a version of; --no-register makes it none."""
    track: bool = True
    """On by default: MLflow is told, where it is installed; `metrics.jsonl` is written either way."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(
            1,
            steps=self.steps,
            num_workers=self.num_workers,
            threads_per_worker=self.threads_per_worker,
            log_every_steps=self.log_every_steps,
        )
        check_at_least(0, seed=self.seed, max_failures=self.max_failures)
        if self.seed >= SEEDS:
            raise ConfigError(f"seed={self.seed} must be below {SEEDS}")
        self._check_model_name()
        self._check_workers()
        if not list(self.batches.steps_taken(self.steps, self.steps)):
            raise ConfigError(
                f"batches.skip_steps={self.batches.skip_steps} holds the last of steps={self.steps}; a run "
                f"takes its last step, so skip fewer or give more steps"
            )
        for name, every in (
            ("checkpoints", self.checkpoints.every_steps),
            ("evaluation", self.evaluation.every_steps),
        ):
            if every % self.log_every_steps:
                raise ConfigError(
                    f"{name}.every_steps={every} is no multiple of log_every_steps={self.log_every_steps}, "
                    f"where losses are looked at; give one, or log_every_steps=1"
                )

    def _check_model_name(self) -> None:
        if self.register_as is None:
            return
        if not MODEL_NAME.fullmatch(self.register_as):
            raise ConfigError(
                f"register_as={self.register_as!r} cannot name a model; letters, digits and . _ - can"
            )
        if self.register_as.lower() == "none":
            raise ConfigError(
                f"register_as={self.register_as!r} would be a model of that name; "
                f"give --no-register to register nothing"
            )

    def _check_workers(self) -> None:
        """Any number of workers in the range may come to train."""
        least = self.num_workers if self.min_workers is None else self.min_workers
        if not 1 <= least <= self.num_workers:
            raise ConfigError(
                f"min_workers={least} must be at least 1 and at most num_workers={self.num_workers}"
            )
        self.batches.require_shared_among(self.num_workers)
        may_train = self.batches.is_shared_among
        if illegal := [size for size in range(least, self.num_workers) if not may_train(size)]:
            legal = filter(may_train, range(1, self.batches.num_micro_batches + 1))
            raise ConfigError(
                f"between min_workers={least} and num_workers={self.num_workers} there could be {illegal[0]} "
                f"workers, among whom batches.global_batch={self.batches.global_batch} in micro-batches of "
                f"{self.batches.micro_batch} cannot be shared evenly; numbers of workers that can: "
                f"{', '.join(map(str, legal))}; or give --batches.allow-uneven"
            )

    def is_logged(self, step: int) -> bool:
        return self._is_due(step, self.log_every_steps)

    def is_evaluated(self, step: int) -> bool:
        return self._is_due(step, self.evaluation.every_steps)

    def is_saved(self, step: int) -> bool:
        return self._is_due(step, self.checkpoints.every_steps)

    def _is_due(self, step: int, every_steps: int) -> bool:
        """At every multiple, or at the first step after it that is taken; and in the end."""
        return step // every_steps > self.batches.step_before(step) // every_steps or step == self.steps
