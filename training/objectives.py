"""What is learned: to give back the frames of a clip, or to predict the next token of a sequence.

An objective turns clips into examples and examples into losses. Losses leave as sums over targets (frames or
tokens), so that a step can divide by the count of them all, wherever they were computed.

Shapes: B clips, T frames, S pixels a side, L tokens, V vocabulary, N target tokens.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GPTConfig
from model.gpt import GPT
from model.reconstruction_loss import reconstruction_loss
from model.tasks import collate, with_noise
from model.token_loss import token_loss
from model.tokenizer import Tokenizer, to_floats
from model.vocabulary import PAD, Vocabulary
from training.config import RunConfig
from training.configs.objective import PredictConfig, ReconstructConfig
from training.data import TrainingData
from training.flops import training_flops_per_token
from training.loading.shelf import Clip

Examples = dict[str, Tensor]
"""One micro-batch, as the learner takes it."""
Losses = tuple[Tensor, dict[str, Tensor]]
"""The objective, which is minimised, and what is reported (`loss` first), each summed over targets."""


class Objective(Protocol):
    unit: str
    """What throughput is counted in."""

    def build_model(self) -> nn.Module: ...

    def examples(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Examples:
        """Without `rng`, as in evaluation, nothing is left to chance."""

    def count_targets(self, examples: Examples) -> int: ...

    def count_units(self, examples: Examples) -> int: ...

    def flops_per_unit(self, examples: Examples) -> float:
        """Of learning from one of theirs, forward and backward; 0 where no formula is known."""

    def losses(self, model: nn.Module, examples: Examples) -> Losses: ...


class Learner(nn.Module):
    """A model with its objective: the module that the engine trains."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self._objective = objective
        self.model = objective.build_model()

    def forward(self, examples: Examples) -> Losses:
        return self._objective.losses(self.model, examples)


def build_objective(config: RunConfig, data: TrainingData) -> Objective:
    if isinstance(config.objective, ReconstructConfig):
        return Reconstruct(config.objective)
    gpt_config = data.gpt_config(config.objective.model)
    return Predict(config.objective, gpt_config, data.vocabulary)


class Reconstruct:
    """Frames in, the same frames out: L1, L2, Haar bands and frame differences, on random resized crops."""

    unit = "frames"

    def __init__(self, config: ReconstructConfig) -> None:
        self._config = config

    def build_model(self) -> Tokenizer:
        return Tokenizer(self._config.model)

    def examples(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Examples:
        return {"frames": torch.stack([self._view(clip, rng) for clip in clips])}  # (B, T, 3, S, S)

    def count_targets(self, examples: Examples) -> int:
        return examples["frames"].shape[0] * examples["frames"].shape[1]

    def count_units(self, examples: Examples) -> int:
        return self.count_targets(examples)

    def flops_per_unit(self, examples: Examples) -> float:  # noqa: ARG002
        return 0.0

    def losses(self, model: nn.Module, examples: Examples) -> Losses:
        frames = examples["frames"]
        dtype: Any = next(model.parameters()).dtype
        pieces = reconstruction_loss(model(frames.to(dtype)).frames, frames)
        config = self._config
        total = (
            config.l1_weight * pieces.l1
            + config.l2_weight * pieces.l2
            + config.haar_weight * pieces.haar
            + config.difference_weight * pieces.difference
        )
        count = self.count_targets(examples)
        reported = {"loss": total} | pieces._asdict()
        return total * count, {name: value.detach() * count for name, value in reported.items()}

    def _view(self, clip: Clip, rng: np.random.Generator | None) -> Tensor:
        """A clip (T, H, W, 3) uint8 to frames (T', 3, S, S): a crop of some neighbouring frames, resized."""
        height, width = clip.shape[1:3]
        short = min(height, width)
        num_frames = self._config.frames_per_clip
        spare = max(0, len(clip) - num_frames)
        if rng is None:
            first, side, top, left, mirror = (
                spare // 2,
                short,
                (height - short) // 2,
                (width - short) // 2,
                False,
            )
        else:
            first = int(rng.integers(spare + 1))
            side = int(rng.integers(round(short * self._config.smallest_crop), short + 1))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            mirror = self._config.flip and bool(rng.integers(2))
        # a still stands for its neighbours
        indices = np.minimum(np.arange(first, first + num_frames), len(clip) - 1)
        crop = torch.from_numpy(clip[indices, top : top + side, left : left + side].copy())
        frames = square(crop, self._config.model.frame_size)
        return frames.flip(-1) if mirror else frames


class Predict:
    """Cross entropy over a task's target tokens, with a z-loss."""

    unit = "tokens"

    def __init__(self, config: PredictConfig, gpt_config: GPTConfig, vocabulary: Vocabulary) -> None:
        self._config = config
        self._gpt_config = gpt_config
        self.vocabulary = vocabulary
        self.task = config.build_task()

    def build_model(self) -> GPT:
        return GPT(self._gpt_config)

    def examples(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Examples:
        """`places` (N,) of the targets in the flattened (B, L - 1) logits are found here, on the host: a GPU
        would hold it up until it has counted them."""
        batch = collate([self.task.build(clip, self.vocabulary, rng) for clip in clips])
        places = batch.is_target[:, 1:].flatten().nonzero().squeeze(1)  # (N,)
        return {
            "inputs": self._inputs(batch.tokens, rng),  # (B, L)
            "coordinates": batch.coordinates,  # (B, L, 3)
            "places": places,
            "targets": batch.tokens[:, 1:].flatten()[places],  # (N,)
        }

    def count_targets(self, examples: Examples) -> int:
        return len(examples["places"])

    def count_units(self, examples: Examples) -> int:
        return int((examples["inputs"] != PAD).sum())

    def flops_per_unit(self, examples: Examples) -> float:
        return training_flops_per_token(self._gpt_config, examples["inputs"].shape[1])

    def losses(self, model: nn.Module, examples: Examples) -> Losses:
        inputs, coordinates = examples["inputs"][:, :-1], examples["coordinates"][:, :-1]
        logits = model(inputs, coordinates, places=examples["places"])  # (N, V)
        total, cross_entropy, z = token_loss(logits, examples["targets"], z_weight=self._config.z_weight)
        return total, {"loss": cross_entropy, "z": z}

    def _inputs(self, tokens: Tensor, rng: np.random.Generator | None) -> Tensor:
        if rng is None or not self._config.noise_share:
            return tokens
        chance = torch.Generator().manual_seed(int(rng.integers(1 << 63)))
        return with_noise(tokens, self.vocabulary, share=self._config.noise_share, generator=chance)


def square(frames: Tensor, size: int) -> Tensor:
    """Square frames (T, H, H, 3) uint8 to (T, 3, size, size) float in [-1, 1]."""
    floats = to_floats(frames)
    if floats.shape[-1] == size:
        return floats
    return F.interpolate(floats, size=(size, size), mode="bilinear", antialias=True)


def generator(seed: int, step: int, micro_batch: int) -> np.random.Generator:
    """Chance for one micro-batch: a pure function of where it stands in the run."""
    return np.random.default_rng([seed, step, micro_batch])


def torch_seed(seed: int, step: int, micro_batch: int) -> int:
    """The same for what draws inside the model, such as dropout."""
    return int(np.random.SeedSequence([seed, step, micro_batch, 1]).generate_state(1, np.uint64)[0] >> 1)


def assemble(objective: Objective, weights: dict[str, Tensor]) -> nn.Module:
    """The model by itself, with a learner's weights, ready to be used."""
    model = objective.build_model()
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    return model.eval()
