"""What training a tokenizer costs, counted on one without memory: convolutions have no short formula."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from training.configs.objective import ReconstructConfig
from training.objectives import Learner, Reconstruct


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerCost:
    parameters: int
    frames_per_clip: int
    flops_per_clip: float
    """Of products and convolutions, forward and backward."""
    activation_elements_per_clip: int
    """Kept from forward to backward."""


def tokenizer_cost(config: ReconstructConfig) -> TokenizerCost:
    num_frames, side = config.frames_per_clip, config.model.frame_size
    with FakeTensorMode():
        learner = Learner(Reconstruct(config))
        kept, counter = _Kept(list(learner.parameters())), FlopCounterMode(display=False)
        with counter, torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
            total, _ = learner({"frames": torch.empty(1, num_frames, 3, side, side)})
            total.backward()
    return TokenizerCost(
        parameters=sum(parameter.numel() for parameter in learner.parameters()),
        frames_per_clip=num_frames,
        flops_per_clip=float(counter.get_total_flops()),
        activation_elements_per_clip=kept.num_elements,
    )


class _Kept:
    """Counts what is kept, each storage once, and no weight."""

    def __init__(self, weights: list[Any]) -> None:
        self._seen = {_storage(weight) for weight in weights}
        self._alive: list[Tensor] = []  # so that no other tensor gets the place of one that is gone
        self.num_elements = 0

    def note(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._seen:
            self._seen.add(_storage(tensor))
            self._alive.append(tensor)
            self.num_elements += tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor


def _storage(tensor: Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place
