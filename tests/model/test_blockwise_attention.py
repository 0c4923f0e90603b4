import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.blockwise_attention import QUERIES_PER_BLOCK, causal_attention

B, K = 2, 8
N = QUERIES_PER_BLOCK


def random_heads(num_heads: int, num_kv_heads: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, heads, length, K) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [2, N - 1, N, N + 1, 4 * N + 2])
def test_values_and_gradients_are_those_of_torch(num_heads: int, num_kv_heads: int, length: int) -> None:
    heads = random_heads(num_heads, num_kv_heads, length)
    grad = torch.randn(B, num_heads, length, K, generator=torch.Generator().manual_seed(1))

    ours = causal_attention(*heads)
    theirs = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)

    torch.testing.assert_close(ours, theirs)
    of_ours, of_theirs = (torch.autograd.grad(y, heads, grad) for y in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-4, atol=1e-5)


def test_scores_of_any_size_give_finite_weights() -> None:
    q, k, v = random_heads(2, 1, 2 * N + 1)
    y = causal_attention(1e3 * q, 1e3 * k, v)
    torch.testing.assert_close(
        y, F.scaled_dot_product_attention(1e3 * q, 1e3 * k, v, is_causal=True, enable_gqa=True)
    )


def test_autocast_changes_nothing() -> None:
    heads = random_heads(4, 2, N + 3)
    expected = torch.autograd.grad(causal_attention(*heads).square().sum(), heads)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(causal_attention(*heads).square().sum(), heads)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_same_numbers_come_out_again_to_the_last_bit() -> None:
    heads = random_heads(4, 2, 3 * N - 5)
    once, again = (torch.autograd.grad(causal_attention(*heads).square().sum(), heads) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
