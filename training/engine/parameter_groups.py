"""Which weights decay, and the AdamW that steps them."""

from typing import Any

import torch
from torch import nn

from training.configs.engine import OptimizerConfig
from training.engine.uncompiled import AdamW


def adamw(learner: nn.Module, config: OptimizerConfig) -> AdamW:
    """torch's fused kernel, which needs no compiler on CPU or CUDA; its learning rate is set at each step."""
    betas = (config.beta1, config.beta2)
    groups = parameter_groups(learner, config.weight_decay)
    return AdamW(groups, lr=config.peak_lr, betas=betas, fused=True)


def parameter_groups(learner: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices alone: never for norms, biases or embeddings."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in learner.named_parameters():
        is_matrix = parameter.ndim >= 2 and "embedding" not in name.split(".")
        (decayed if is_matrix else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def names_in_order(learner: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of the parameters, as they follow each other in the optimizer's groups."""
    names = {parameter: name for name, parameter in learner.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
