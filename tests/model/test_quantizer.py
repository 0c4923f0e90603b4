import math

import pytest
import torch

from model.quantizer import FSQ

LEVELS = [(8, 5, 5, 5), (8, 6, 5), (2,), (3, 4)]


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_comes_back_from_its_values(levels: tuple[int, ...]) -> None:
    quantizer = FSQ(levels)
    codes = torch.arange(math.prod(levels))
    values = quantizer.values(codes)  # (codes, D)
    assert values.unique(dim=0).shape == values.shape
    assert values.abs().max() <= 1.0
    digits = (values * torch.tensor(levels).div(2, rounding_mode="floor")).round().long()
    assert torch.equal(_codes_of(digits, levels), codes)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_can_be_reached_and_says_what_was_quantized(levels: tuple[int, ...]) -> None:
    quantizer = FSQ(levels)
    latents = torch.randn(100 * math.prod(levels), len(levels)) * 2.5
    values, codes = quantizer(latents)
    assert codes.min() == 0
    assert codes.max() == math.prod(levels) - 1
    assert len(codes.unique()) > 0.99 * math.prod(levels)
    torch.testing.assert_close(quantizer.values(codes), values)


def test_codes_are_the_same_alone_and_in_a_batch() -> None:
    quantizer = FSQ((8, 5, 5, 5))
    latents = torch.randn(64, 4) * 3
    together = quantizer(latents)[1]
    assert torch.equal(together, torch.stack([quantizer(latent)[1] for latent in latents]))


def test_the_gradient_passes_straight_through_the_rounding() -> None:
    quantizer = FSQ((8, 5, 5, 5))
    latents = torch.randn(32, 4, requires_grad=True)
    values, _ = quantizer(latents)
    values.sum().backward()
    assert latents.grad is not None
    assert (latents.grad > 0).all()  # of the squashing, which only grows


def test_codes_do_not_depend_on_the_dtype_around() -> None:
    quantizer = FSQ((8, 8, 8, 6, 5))
    latents = (torch.randn(512, 5) * 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, under_autocast = quantizer(latents)
    _, plain = quantizer(latents.float())
    assert torch.equal(under_autocast, plain)


def _codes_of(digits: torch.Tensor, levels: tuple[int, ...]) -> torch.Tensor:
    """Mixed radix by hand: the reference."""
    codes = torch.zeros(len(digits), dtype=torch.long)
    for i, level in reversed(list(enumerate(levels))):
        codes = codes * level + digits[:, i] + level // 2
    return codes
