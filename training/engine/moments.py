"""The state of an AdamW that has not stepped yet, as it would begin it.

torch makes it at the first step, which fp16 puts off while gradients overflow. A checkpoint of then would
have no moments, and DeepSpeed's conversion to another topology fails where there are none.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def begin_moments(optimizer: Any) -> None:
    """Of DeepSpeed's `optimizer` around torch's, if no step has done it."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if inner.state:
        return
    for weights in _stepped(optimizer, inner):
        inner.state[weights] |= {
            "step": torch.zeros((), dtype=torch.float32, device=weights.device),
            "exp_avg": torch.zeros_like(weights),
            "exp_avg_sq": torch.zeros_like(weights),
        }


def _stepped(optimizer: Any, inner: torch.optim.Optimizer) -> Iterator[Tensor]:
    """What the optimizer steps: under ZeRO-3 it is given that only while it does."""
    yield from getattr(optimizer, "fp32_partitioned_groups_flat", ())
    for group in inner.param_groups:
        yield from group["params"]
