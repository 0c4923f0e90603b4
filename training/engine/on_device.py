"""Where a model that a run has assembled is used: beside the run, on its device, if it has room there."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def on_device(model: M, device: torch.device, use: Callable[[M], T]) -> T:
    """What `use` makes of the model on `device`; the model is on the host before and after.

    A run's own states may leave no room for another model: it is then used on the host, slowly.
    """
    if device.type != "cpu":
        try:
            return use(model.to(device))
        except torch.OutOfMemoryError:
            pass  # its frames held what was on the device: the second try is made without them
        finally:
            model.cpu()
    return use(model)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
