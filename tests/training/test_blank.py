"""A model that is about to be read draws no random numbers, and is whole otherwise."""

import torch
from torch import nn

from model.config import GPTConfig
from model.gpt import GPT
from training.engine.blank import Blank

CONFIG = GPTConfig(
    vocabulary_size=64, context_tokens=16, model_dim=16, num_layers=1, num_heads=2, num_kv_heads=1,
    hidden_dim=32,
)  # fmt: skip


def test_inside_it_nothing_is_drawn_and_every_parameter_is_there() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with Blank():
        model = GPT(CONFIG)
        nn.init.kaiming_uniform_(nn.Linear(4, 4).weight)
    assert torch.equal(torch.get_rng_state(), before)
    expected = GPT(CONFIG).state_dict()
    assert not torch.equal(torch.get_rng_state(), before)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
