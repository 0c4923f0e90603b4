"""What a run is: frozen, validated settings by composition. Imports nothing heavy: refusals are instant."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from infra.errors import ConfigError
from model.config import GPTConfig, TokenizerConfig
from model.tasks import Task, get_task

SEEDS = 1 << 63
"""How many torch tells apart."""
MODEL_NAME = re.compile(r"[A-Za-z0-9._-]+")
"""What the registry takes: said before a run, not after."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructConfig:
    """A tokenizer learns to give back the frames it sees."""

    frames_per_clip: int
    """Neighbouring frames taken from a clip each time it comes up; one crop serves them all."""
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    smallest_crop: float = 0.5
    """Random resized crops: the smallest side of a crop, as a share of the frame's shorter side."""
    flip: bool = True
    """Mirror half of the crops left to right."""
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    haar_weight: float = 0.0
    difference_weight: float = 0.0

    def __post_init__(self) -> None:
        _check_at_least(1, frames_per_clip=self.frames_per_clip)
        if not 0.0 < self.smallest_crop <= 1.0:
            raise ConfigError(f"smallest_crop={self.smallest_crop} must be above 0 and at most 1")
        weights = (self.l1_weight, self.l2_weight, self.haar_weight, self.difference_weight)
        if min(weights) < 0 or not any(weights):
            raise ConfigError(
                f"the weights of the reconstruction loss are {weights}; none may be negative, nor all 0"
            )
        if self.difference_weight and self.frames_per_clip == 1:
            raise ConfigError(
                "difference_weight has no effect with frames_per_clip=1; give difference_weight=0"
            )

    @property
    def data_kind(self) -> Literal["frames"]:
        return "frames"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether clips of frames (T, H, W, 3) can serve."""
        return shape[0] >= 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTShape:
    """What of a GPTConfig is chosen; the vocabulary and the context follow from the shard set."""

    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    hidden_dim: int
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    digit_embeddings: bool = True
    """Embed the FSQ digits of a code beside the code, so that rare codes borrow from their neighbours."""

    def __post_init__(self) -> None:
        self.config(vocabulary_size=1, context_tokens=1, code_levels=())

    def config(self, *, vocabulary_size: int, context_tokens: int, code_levels: tuple[int, ...]) -> GPTConfig:
        return GPTConfig(
            vocabulary_size=vocabulary_size,
            context_tokens=context_tokens,
            model_dim=self.model_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            hidden_dim=self.hidden_dim,
            dropout=self.dropout,
            rope_theta=self.rope_theta,
            code_levels=code_levels if self.digit_embeddings else (),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """A GPT learns to predict the next token of a task's sequences."""

    task: str
    model: GPTShape
    prefix_frames: int | None = None
    """For `continue`: frames given in evaluation, and the most that are given in training."""
    noise_share: float = 0.0
    """Share of the codes that training shows wrongly; what is to be predicted stays true."""
    z_weight: float = 1e-4
    """Weight of log^2 of the softmax's normaliser (PaLM, arXiv 2204.02311): keeps logits from drifting."""

    def __post_init__(self) -> None:
        self.build_task()
        if not 0.0 <= self.noise_share < 1.0:
            raise ConfigError(
                f"noise_share={self.noise_share} must be from 0 to below 1; 0 shows all as it is"
            )
        if self.z_weight < 0:
            raise ConfigError(f"z_weight={self.z_weight} must not be negative; 0 turns the term off")

    @property
    def data_kind(self) -> Literal["tokens"]:
        return "tokens"

    def build_task(self) -> Task:
        return get_task(
            self.task, **({} if self.prefix_frames is None else {"prefix_frames": self.prefix_frames})
        )

    @property
    def num_given(self) -> int:
        """Frames given in evaluation."""
        return getattr(self.build_task(), "prefix_frames", 0)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether clips of codes (t, h, w) can serve: there must be a frame left to predict."""
        return shape[0] > self.num_given


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine down to a share of the peak."""

    peak_lr: float
    warmup_steps: int = 20
    final_lr_share: float = 0.05
    """The last step's learning rate, as a share of the peak."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    """On matrices alone: never on norms, biases or embeddings."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm where they exceed it."""

    def __post_init__(self) -> None:
        if self.peak_lr <= 0 or self.clip_norm <= 0:
            raise ConfigError(f"peak_lr={self.peak_lr} and clip_norm={self.clip_norm} must be above 0")
        if not 0.0 <= self.final_lr_share <= 1.0:
            raise ConfigError(f"final_lr_share={self.final_lr_share} must be from 0 to 1")
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise ConfigError(f"beta1={self.beta1} and beta2={self.beta2} must be from 0 to below 1")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise ConfigError(
                f"weight_decay={self.weight_decay} and warmup_steps={self.warmup_steps} must not be negative"
            )

    def learning_rate(self, step: int, steps: int) -> float:
        """Of step 1 to `steps`: a pure function of the step, so that resuming needs no state."""
        if step <= self.warmup_steps:
            return self.peak_lr * step / self.warmup_steps
        done = (step - self.warmup_steps) / (steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * done))
        return self.peak_lr * (self.final_lr_share + (1.0 - self.final_lr_share) * cosine)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchesConfig:
    global_batch: int
    """Clips a step, over all workers and accumulated micro-batches."""
    micro_batch: int
    """Clips in one forward pass of one worker."""
    window_groups: int = 8
    """Row groups whose rows are shuffled among each other; memory for that many is needed."""

    def __post_init__(self) -> None:
        _check_at_least(
            1, global_batch=self.global_batch, micro_batch=self.micro_batch, window_groups=self.window_groups
        )

    def micro_batches_per_worker(self, world_size: int) -> int:
        """Micro-batches that each worker accumulates in a step. Raises ConfigError naming legal sizes."""
        unit = self.micro_batch * world_size
        if self.global_batch % unit:
            below = self.global_batch // unit * unit
            legal = f"{below} or {below + unit}" if below else f"{unit}"
            raise ConfigError(
                f"batches.global_batch={self.global_batch} does not divide into {world_size} workers x "
                f"micro-batches of {self.micro_batch} clips; the nearest sizes that do: {legal}"
            )
        return self.global_batch // unit


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards over the workers: 0 nothing, 1 optimizer state, 2 gradients, 3 weights too."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; with bf16 the optimizer keeps fp32 weights of its own."""

    def __post_init__(self) -> None:
        if self.dtype == "bf16" and not self.zero_stage:
            raise ConfigError(
                "engine.dtype=bf16 needs ZeRO to hold fp32 weights; give engine.zero_stage 1, 2 or 3"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointsConfig:
    every_steps: int
    keep_last: int = 2
    """Older checkpoints are deleted once a newer one is committed."""

    def __post_init__(self) -> None:
        _check_at_least(1, every_steps=self.every_steps, keep_last=self.keep_last)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    every_steps: int
    max_clips: int = 64
    """Validation clips looked at while training, taken evenly from all of them."""
    num_samples: int = 2
    """Validation clips pictured at each evaluation; 0 draws none."""

    def __post_init__(self) -> None:
        _check_at_least(1, every_steps=self.every_steps, max_clips=self.max_clips)
        _check_at_least(0, num_samples=self.num_samples)


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
    num_workers: int
    engine: EngineConfig = field(default_factory=EngineConfig)
    threads_per_worker: int = 1
    """Of torch on a CPU. The last bit depends on it; on cores that others use, more are slower than one."""
    log_every_steps: int = 1
    seed: int = 0
    max_failures: int = 3
    """Under Ray Train: how often a lost worker restarts the group, from the newest whole checkpoint."""
    register_as: str | None = None
    """Model in the registry that the finished run becomes a version of; None registers nothing."""
    track: bool = True
    """Tell MLflow, where it is installed; `metrics.jsonl` is written either way."""

    def __post_init__(self) -> None:
        _check_at_least(
            1,
            steps=self.steps,
            num_workers=self.num_workers,
            threads_per_worker=self.threads_per_worker,
            log_every_steps=self.log_every_steps,
        )
        _check_at_least(0, seed=self.seed, max_failures=self.max_failures)
        if self.seed >= SEEDS:
            raise ConfigError(f"seed={self.seed} must be below {SEEDS}")
        if self.register_as is not None and not MODEL_NAME.fullmatch(self.register_as):
            raise ConfigError(
                f"register_as={self.register_as!r} cannot name a model; letters, digits and . _ - can"
            )
        self.batches.micro_batches_per_worker(self.num_workers)
        for name, every in (
            ("checkpoints", self.checkpoints.every_steps),
            ("evaluation", self.evaluation.every_steps),
        ):
            if every % self.log_every_steps:
                raise ConfigError(
                    f"{name}.every_steps={every} is no multiple of log_every_steps={self.log_every_steps}, "
                    f"where losses are looked at; give one, or log_every_steps=1"
                )

    def is_logged(self, step: int) -> bool:
        return self._is_due(step, self.log_every_steps)

    def is_evaluated(self, step: int) -> bool:
        return self._is_due(step, self.evaluation.every_steps)

    def is_saved(self, step: int) -> bool:
        return self._is_due(step, self.checkpoints.every_steps)

    def _is_due(self, step: int, every_steps: int) -> bool:
        return step % every_steps == 0 or step == self.steps


def _check_at_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if value < least:
            raise ConfigError(f"{name}={value} must be at least {least}")
