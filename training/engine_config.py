"""How a run steps: the optimizer with its schedule, and what DeepSpeed does. Imports nothing heavy."""

import math
from dataclasses import dataclass
from typing import Literal

from infra.errors import ConfigError


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
