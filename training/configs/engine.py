"""How a run steps: the optimizer with its schedule, and what DeepSpeed does. Imports nothing heavy."""

import math
from dataclasses import dataclass
from typing import Literal

from infra.errors import ConfigError

DECAY_SHARE = 0.1
"""Of all steps, for `wsd`: what MiniCPM found to be enough (arXiv 2404.06395, section 4)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, and a schedule down to a share of the peak."""

    peak_lr: float
    warmup_steps: int = 20
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine: half a wave from the peak to the end. wsd: warm-up, stable at the peak, decay at the end."""
    decay_share: float | None = None
    """Of wsd: the share of all steps in which the learning rate falls, linearly. None: a tenth."""
    final_lr_share: float = 0.05
    """The last step's learning rate, as a share of the peak."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    """On matrices alone: never on norms, biases or embeddings."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm where they exceed it."""
    ema_decay: float | None = None
    """Keep an average of the weights, in fp32, of which a step keeps this share (0.999, say): it is what is
    measured, pictured and published. None keeps none."""

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
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay={self.ema_decay} must be above 0 and below 1, such as 0.999")
        self._check_decay_share()

    def _check_decay_share(self) -> None:
        if self.decay_share is None:
            return
        if self.schedule != "wsd":
            raise ConfigError(
                f"decay_share={self.decay_share} has no effect with schedule={self.schedule}; "
                f"give optimizer.schedule=wsd, or leave it out"
            )
        if not 0.0 < self.decay_share <= 1.0:
            raise ConfigError(f"decay_share={self.decay_share} must be above 0 and at most 1")

    def learning_rate(self, step: int, steps: int) -> float:
        """Of step 1 to `steps`: a pure function of the step, so that resuming needs no state."""
        if step <= self.warmup_steps:
            return self.peak_lr * step / self.warmup_steps
        left = self._cosine(step, steps) if self.schedule == "cosine" else self._wsd(step, steps)
        return self.peak_lr * (self.final_lr_share + (1.0 - self.final_lr_share) * left)

    def _cosine(self, step: int, steps: int) -> float:
        done = (step - self.warmup_steps) / (steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * done))

    def _wsd(self, step: int, steps: int) -> float:
        """Warmup-stable-decay (arXiv 2404.06395, equation 1) with a linear decay."""
        decay_steps = max(1, round(steps * (self.decay_share or DECAY_SHARE)))
        first = max(self.warmup_steps, steps - decay_steps)
        return 1.0 if step <= first else (steps - step) / (steps - first)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards over the workers: 0 nothing, 1 optimizer state, 2 gradients, 3 weights too. A
    lone worker in fp32 has nobody to share with, and runs as stage 0."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of weights and activations; beside bf16 and fp16 the optimizer keeps fp32 weights of its own. fp16
    scales its losses: a step whose gradients overflow changes no weight, and counts all the same."""
    offload_optimizer: bool = False
    """Keep and update the optimizer's state in the host's memory. Stages 1 to 3."""
    offload_parameters: bool = False
    """Keep the weights that are not at work in the host's memory. Stage 3."""
    checkpoint_activations: bool = False
    """Keep only what enters a block, and compute the rest again for its gradients: memory for time."""
    compile: bool = False
    """torch.compile, where there is a compiler; where there is none, the run says so and goes on without."""
    deterministic: bool = False
    """On a GPU, take only kernels whose results repeat to the last bit, which are slower. --verify-resume
    sets it. Those of a CPU repeat anyway."""
    deepspeed_config: str | None = None
    """Path or URI of a DeepSpeed JSON whose settings are added, or the JSON itself."""

    def __post_init__(self) -> None:
        if self.dtype != "fp32" and not self.zero_stage:
            raise ConfigError(
                f"engine.dtype={self.dtype} needs ZeRO to hold fp32 weights; give engine.zero_stage 1, 2 or 3"
            )
        if self.offload_optimizer and not self.zero_stage:
            raise ConfigError(
                "engine.offload_optimizer has no effect at engine.zero_stage 0; give stage 1, 2 or 3"
            )
        if self.offload_parameters and self.zero_stage != 3:
            raise ConfigError(
                f"engine.offload_parameters has no effect at engine.zero_stage {self.zero_stage}; "
                f"give stage 3"
            )
        if self.compile and self.zero_stage == 3:
            raise ConfigError(
                "engine.compile does not go with engine.zero_stage 3, whose weights come and go; "
                "give stage 0, 1 or 2, or leave one of them out"
            )

    def stage_among(self, world_size: int) -> Literal[0, 1, 2, 3]:
        """The stage that runs.

        For a lone worker in fp32 every stage does what stage 0 does, and the others copy weights and
        gradients on the way. With a DeepSpeed JSON it is the stage that the JSON was written for.
        """
        holds_copies = self.dtype != "fp32" or self.offload_optimizer or self.offload_parameters
        if world_size == 1 and not holds_copies and self.deepspeed_config is None:
            return 0
        return self.zero_stage
