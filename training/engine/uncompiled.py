"""An optimizer that steps without torch's compiler.

torch imports its compiler when an optimizer is made, to mark what it must leave alone, and that takes as long
as importing the rest of torch. Where nothing is compiled, nothing needs the mark.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

MARKED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods of every optimizer whose first call marks them."""


class AdamW(torch.optim.AdamW):
    """torch's own in all that it computes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in MARKED:
            bare = inspect.unwrap(getattr(torch.optim.Optimizer, name))
            setattr(bare, "__dynamo_disable", bare)  # where torch looks whether it is marked
        super().__init__(*args, **kwargs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return _BARE_STEP(self, closure)


_BARE_STEP = inspect.unwrap(torch.optim.AdamW.step)
"""Without the two breaks that the compiler would be told of."""
