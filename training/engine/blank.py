"""Models whose weights are about to be read from a checkpoint need no random ones first: drawing them takes a
large model longer than reading does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DRAWING = (
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
)
"""What layers' constructors and `torch.nn.init` end in; of the latter, those that come here themselves, since
what they call then does not."""


class Blank(TorchFunctionMode):
    """Inside, tensors that would be filled by chance stay as memory was."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        given = kwargs or {}
        if func in DRAWING:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
