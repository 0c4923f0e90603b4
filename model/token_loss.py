"""Cross entropy with a z-loss in one pass over the logits, which are by far the largest thing of a step.

Shapes: N target tokens, V vocabulary.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_loss(logits: Tensor, targets: Tensor, *, z_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V) and targets (N,) to three sums over the tokens, in fp32: the objective, which is cross
    entropy + z_weight x z; the cross entropy; and z, the squared log of softmax's denominator, which keeps
    logits from drifting (arXiv 2204.02311, section 5). Only the objective has a gradient.

    Logits in fp32 are used up: what they held is gone.
    """
    objective, cross_entropy, z, _ = cast(Any, _TokenLoss).apply(logits, targets, z_weight)
    return objective, cross_entropy, z


class _TokenLoss(torch.autograd.Function):
    """Autograd would take some fifteen passes over (N, V), two of them exponentials, and four times the
    memory."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, z_weight: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        places = targets.unsqueeze(1)  # (N, 1)
        weights = logits.float()  # (N, V): the logits themselves, if they are fp32
        if weights is logits:
            ctx.mark_dirty(logits)
        of_targets, largest = weights.gather(1, places), weights.amax(dim=1, keepdim=True)  # (N, 1)
        total = weights.sub_(largest).exp_().sum(dim=1, keepdim=True)  # (N, 1)
        log_z = total.log() + largest  # (N, 1)
        ctx.save_for_backward(weights, places, total, log_z)
        ctx.z_weight, ctx.dtype = z_weight, logits.dtype
        ctx.set_materialize_grads(False)
        cross_entropy, z = (log_z - of_targets).sum(), log_z.square().sum()
        ctx.mark_non_differentiable(cross_entropy, z)
        return cross_entropy + z_weight * z, cross_entropy, z, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor, None, None]:
        """softmax x (1 + 2 z_weight log z) - the target. In place: torch refuses a second time."""
        weights, places, total, log_z = ctx.saved_tensors
        of_logits = weights.mul_(grad * (1.0 + 2.0 * ctx.z_weight * log_z) / total)  # (N, V)
        of_logits.scatter_add_(1, places, -grad.expand(places.shape))
        return of_logits.to(ctx.dtype), None, None
