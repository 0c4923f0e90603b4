"""How far a reconstruction is from the truth: the pieces that a tokenizer's objective weighs.

Shapes: frames (B, T, 3, H, W) float in [-1, 1].
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ReconstructionLoss(NamedTuple):
    """Each a mean over what it compares; scalars."""

    l1: Tensor
    l2: Tensor
    haar: Tensor
    """L1 over the detail bands of a Haar transform at two scales: edges count as much as surfaces."""
    difference: Tensor
    """L1 over the change from frame to frame; zero for stills. What holds still must not flicker."""


def reconstruction_loss(predicted: Tensor, target: Tensor) -> ReconstructionLoss:
    error = predicted.float() - target.float()  # every piece is linear in the frames before its norm
    return ReconstructionLoss(
        l1=error.abs().mean(),
        l2=error.square().mean(),
        haar=_haar_details(error),
        difference=_frame_differences(error),
    )


def _haar_details(error: Tensor, num_scales: int = 2) -> Tensor:
    approximation = error.flatten(0, 1)  # (B * T, 3, H, W)
    total = error.new_zeros(())
    for _ in range(num_scales):
        approximation, details = haar(approximation)
        total = total + details.abs().mean()
    return total / num_scales


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """One orthonormal 2 x 2 Haar step on (N, C, H, W).

    Gives the smooth band (N, C, H/2, W/2) and the three of details (N, C, 3, H/2, W/2).
    """
    a, b, c, d = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2)
    details = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d], dim=2)
    return (a + b + c + d) / 2, details / 2


def _frame_differences(error: Tensor) -> Tensor:
    if error.shape[1] == 1:
        return error.new_zeros(())
    return error.diff(dim=1).abs().mean()
