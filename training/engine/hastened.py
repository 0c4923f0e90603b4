"""What DeepSpeed does around a step and a save that need not be done, or costs too much.

ZeRO 1 and 2 search each gradient for inf and NaN, and then take its norm, in a dozen small kernels; after the
optimizer they point each weight at its place again. A GPU that has nothing else to do waits for all that: a
sixth of the step of a model of 350 million parameters.
"""

from collections import OrderedDict
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from training.engine.connection import deepspeed


def hasten(engine: Any, *, stage: int, world_size: int) -> None:
    """Replaces methods of DeepSpeed's engine, and of its optimizer, by cheaper ones with the same result."""
    _hasten_saves(engine)
    if world_size == 1 and not stage:
        engine.enable_backward_allreduce = False  # it would copy all gradients to send them nowhere
    if isinstance(engine.optimizer, deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer):
        _hasten_optimizer(engine.optimizer)  # a DeepSpeed JSON may lead to another one at stage 1


def _hasten_saves(engine: Any) -> None:
    """No scripts beside each checkpoint, and one walk through all modules for what stays: names and shapes,
    which parameters are one, and that the optimizer has all of them."""
    _replace(engine, "_copy_recovery_script", lambda _: None)
    for name in ("_get_buffer_names", "_get_zero_param_shapes", "_get_shared_params"):
        _replace(engine, name, cache(getattr(engine, name)))
    if all(map(deepspeed.runtime.utils.is_optimized_parameter, engine.module.parameters())):
        _replace(engine, "_get_zero_frozen_param_attributes", lambda _: OrderedDict())


def _hasten_optimizer(optimizer: Any) -> None:
    cheaper: dict[str, Any] = {"_update_model_bit16_weights": _keep_views}
    if optimizer.compute_grad_norm:
        cheaper["check_overflow"] = _skip_search
        cheaper["get_grad_norm_direct"] = partial(_partitions_norm, optimizer.dp_process_group)
    for name, method in cheaper.items():
        _replace(optimizer, name, method)


def _replace(owner: Any, name: str, method: Any) -> None:
    assert hasattr(owner, name), f"DeepSpeed's {name} has another name now"
    setattr(owner, name, method)


def _keep_views(_: int) -> None:
    """Each weight is a view of the flat ones since the beginning, and those are written in place."""


def _skip_search(**_: Any) -> None:
    """An inf or NaN in a gradient makes the norm one, at which DeepSpeed looks, too, before it steps."""


@torch.no_grad()
def _partitions_norm(group: Any, gradients: list[Tensor], _: Any) -> Tensor:
    """Of the gradients of all ranks' partitions, taken in fp64 as by DeepSpeed."""
    own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    total = torch.zeros((), device=gradients[0].device)
    if own:  # a rank's partition may be padding alone
        total = torch.stack(torch._foreach_norm(own, 2, dtype=torch.float64)).square().sum().float()
    deepspeed.comm.all_reduce(total, group=group)
    return total.sqrt()
