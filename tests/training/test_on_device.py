from typing import Any

import pytest
import torch
from torch import nn

from training.engine.on_device import device_of, on_device


class Crowded(nn.Linear):
    """Finds no room on another device, as beside a run whose states fill it."""

    def to(self, *_: Any, **__: Any) -> "Crowded":
        raise torch.OutOfMemoryError


def test_a_model_for_which_a_device_has_no_room_is_used_on_the_host() -> None:
    assert on_device(Crowded(2, 2), torch.device("cuda"), device_of) == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_is_used_on_the_device_and_is_on_the_host_afterwards() -> None:
    model = nn.Linear(2, 2)
    weights = model.weight.detach().clone()
    assert on_device(model, torch.device("cuda"), device_of).type == "cuda"
    assert torch.equal(model.weight, weights)
