import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from model.attention import Rotary, _Turn
from model.rms_norm import RMSNorm, _RMSNorm


def test_gradients_written_by_hand_are_right() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, weight: _RMSNorm.apply(x, weight, 1e-6), (x, weight))
    rotary = Rotary(torch.randint(9, (2, 5, 3)), head_dim=8, theta=10.0)
    assert gradcheck(lambda x: _Turn.apply(x, rotary.cos.double(), rotary.sin.double()), (x,))


def test_the_norm_is_torchs_whatever_way_its_input_lies() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(8)
    torch.nn.init.normal_(norm.weight)
    for x in (torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8).transpose(1, 2)):
        torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_torchs_too_where_nearly_all_is_zero(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (1e-3 * torch.randn(64, 32)).to(dtype).requires_grad_()
    weight, grad = torch.randn(32).to(dtype).requires_grad_(), torch.randn(64, 32).to(dtype)
    norm = RMSNorm(32)
    norm.weight = torch.nn.Parameter(weight.detach().clone())
    ours, theirs = norm(x), F.rms_norm(x, (32,), weight)
    torch.testing.assert_close(ours, theirs)
    of_ours = torch.autograd.grad(ours, (x, norm.weight), grad)
    of_theirs = torch.autograd.grad(theirs, (x, weight), grad)
    for one, other in zip(of_ours, of_theirs, strict=True):
        assert one.dtype == dtype
        assert (one - other).norm() < 2e-2 * other.norm()


def test_both_ways_to_turn_are_one() -> None:
    torch.manual_seed(0)
    rotary = Rotary(torch.randint(9, (2, 5, 3)), head_dim=8, theta=10.0)
    x = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(rotary.turn(x).double(), rotary.turn(x.double()), check_dtype=False)
