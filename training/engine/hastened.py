"""What ZeRO 1 and 2 do around the optimizer, in some kernels instead of thousands.

DeepSpeed searches each gradient for what is not finite, and then takes its norm, in a dozen small kernels;
after the optimizer it makes each weight anew. A GPU waits for all that to be launched: a sixth of the step of
a model of 350 million parameters.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from training.engine.connection import deepspeed


def hasten(optimizer: Any) -> None:
    """DeepSpeed's, of stage 1 or 2."""
    if optimizer.compute_grad_norm:
        optimizer.check_overflow = _leave_it_to_the_norm
        optimizer.get_grad_norm_direct = partial(_norm, optimizer.dp_process_group)
    optimizer._update_model_bit16_weights = _leave_where_it_is


def _leave_it_to_the_norm(**_: Any) -> None:
    """DeepSpeed looks at the norm too, before it steps, and what is not finite makes it so."""


def _leave_where_it_is(_: int) -> None:
    """Each weight is a view of the flat ones since the beginning, and those are written in place."""


@torch.no_grad()
def _norm(group: Any, gradients: list[Tensor], _: Any) -> Tensor:
    """Of the gradients of all ranks' partitions; as exact as DeepSpeed's, which takes them as fp64 too."""
    own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    norms = torch._foreach_norm(own, 2, dtype=torch.float64)
    total = torch.stack(norms).square().sum().float() if own else torch.zeros((), device=gradients[0].device)
    deepspeed.comm.all_reduce(total, group=group)
    return total.sqrt()
