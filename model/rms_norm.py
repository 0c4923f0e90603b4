"""RMSNorm (arXiv 1910.07467); on a CPU with a gradient written by hand, in half the passes over memory.

torch has one kernel for it on a GPU, and a chain of small ones on a CPU, each with a gradient of its own.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """Of the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_by_hand(x):
            return super().forward(x)
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps  # whatever x is, as torch does
        normed: Tensor = cast(Any, _RMSNorm).apply(x, self.weight, eps)
        return normed


def is_by_hand(x: Tensor) -> bool:
    """Elsewhere torch fuses as well or better, and its compiler better than we do; float64 is for checking
    what is by hand."""
    return x.device.type == "cpu" and x.dtype != torch.float64 and not torch.compiler.is_compiling()


def widened(x: Tensor) -> Tensor:
    """To float32 at least, which a CPU computes faster than what is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide, wide_weight = widened(x), widened(weight)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale: Tensor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        normed: Tensor = wide * scale
        ctx.save_for_backward(normed, scale, weight)
        return (normed * wide_weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        wide, wide_weight = widened(grad), widened(weight)
        product = wide * normed
        along = (product @ wide_weight).div_(-normed.shape[-1]).unsqueeze(-1)  # (..., 1)
        of_x = (wide * wide_weight).addcmul_(normed, along).mul_(scale)
        of_weight = product.sum(dim=tuple(range(grad.ndim - 1)))
        return of_x.to(grad.dtype), of_weight.to(weight.dtype), None
