"""Finite scalar quantization (FSQ, arXiv 2309.15505): a vector is squashed, rounded, and that is its code.

There is no codebook to learn and none to collapse. All of it runs in fp32, whatever the model's dtype: a
digit rounded in bf16 is often the wrong one.

Shapes: D digits (`len(levels)`), ... any leading dimensions.
"""

import math

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    levels: Tensor
    strides: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.num_codes = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # (D,)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)  # (D,)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (..., D) to quantized values (..., D) in [-1, 1] and codes (...) int64.

        Values carry the gradient straight through the rounding.
        """
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self._bound(latents.float())  # (..., D)
            rounded = bounded.round()
            values = (bounded + (rounded - bounded).detach()) / self._half_width()
        digits = rounded.detach().long() + self.levels // 2  # (..., D), each in [0, level)
        return values.to(latents.dtype), (digits * self.strides).sum(dim=-1)

    def values(self, codes: Tensor) -> Tensor:
        """The quantized values (..., D) float32 that `codes` (...) stand for."""
        return (self.digits(codes) - self.levels // 2).float() / self._half_width()

    def digits(self, codes: Tensor) -> Tensor:
        """The digits (..., D) int64 of `codes` (...)."""
        return codes.unsqueeze(-1) // self.strides % self.levels

    def _half_width(self) -> Tensor:
        return (self.levels // 2).float()

    def _bound(self, latents: Tensor) -> Tensor:
        """Squashes each digit so that it rounds to `level` integers, shifted by a half where that is even."""
        half_range = (self.levels - 1).float() * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half_range)
        return torch.tanh(latents + shift) * half_range - offset
