import torch
from torch.nn import functional as F

from model.token_loss import token_loss


def test_it_is_cross_entropy_with_a_z_loss_and_has_their_gradient() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 11, requires_grad=True), torch.randint(11, (6,))
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    z = logits.logsumexp(dim=-1).square().sum()
    expected = cross_entropy + 0.1 * z
    found = token_loss(logits * 1.0, targets, z_weight=0.1)
    torch.testing.assert_close(found, (expected, cross_entropy.detach(), z.detach()))
    (gradient,) = torch.autograd.grad(found[0], logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_half_precision_is_summed_in_fp32() -> None:
    torch.manual_seed(0)
    logits, targets = (
        torch.randn(6, 1000, dtype=torch.bfloat16, requires_grad=True),
        torch.randint(1000, (6,)),
    )
    objective, cross_entropy, _ = token_loss(logits, targets, z_weight=0.0)
    expected = F.cross_entropy(logits.detach().float(), targets, reduction="sum")
    torch.testing.assert_close((objective, cross_entropy), (expected, expected))
    (gradient,) = torch.autograd.grad(objective, logits)
    assert gradient.dtype == torch.bfloat16
