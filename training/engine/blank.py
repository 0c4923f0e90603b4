"""Models whose weights are about to be read from a checkpoint need no random ones first: drawing them takes a
large model longer than reading does."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWING = (torch.Tensor.normal_, torch.Tensor.uniform_)
"""What `torch.nn.init` and the layers' own constructors end in."""


class Blank(TorchFunctionMode):
    """Inside, tensors that would be filled by chance stay as memory was."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        return args[0] if func in DRAWING else func(*args, **(kwargs or {}))
