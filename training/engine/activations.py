"""Activation checkpointing (arXiv 1604.06174): a block keeps what enters it, and is computed twice."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.gpt import Block
from model.tokenizer import ResidualBlock


def checkpoint_blocks(model: nn.Module, *, reentrant: bool) -> int:
    """Makes every block of `model` forget its inside; gives how many there are.

    `reentrant` for ZeRO-3: the other kind looks at weights while they are away, and finds them changed.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block | ResidualBlock)]
    for block in blocks:
        block.forward = _forgetful(block.forward, reentrant)  # type: ignore[method-assign]
    return len(blocks)


def _forgetful(forward: Callable[..., Any], reentrant: bool) -> Callable[..., Any]:
    def remembered(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=reentrant)

    return remembered
