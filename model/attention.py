"""Causal self-attention: grouped queries, normalised queries and keys, a rotary embedding of three axes.

A token's place is what its coordinates say (frame, row, column), not its index: the order of a sequence is
the order of prediction alone. Keys and values can be kept in a cache of fixed size while sampling.

Shapes: B sequences, L tokens, D model, H heads of queries, G heads of keys and values, K head width.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.blockwise_attention import LONGEST, causal_attention
from model.config import GPTConfig
from model.rms_norm import RMSNorm, is_by_hand, widened

NUM_AXES = 3


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.dropout = config.dropout
        num_all_heads = config.num_heads + 2 * config.num_kv_heads
        self.qkv = nn.Linear(config.model_dim, num_all_heads * config.head_dim, bias=False)
        self.query_norm = RMSNorm(config.head_dim)
        self.key_norm = RMSNorm(config.head_dim)
        self.out = nn.Linear(config.model_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor, rotary: "Rotary", cache: "LayerCache | None" = None) -> Tensor:
        """(B, L, D) to (B, L, D). With a cache, x are the tokens after those that it holds."""
        split = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        heads = self.qkv(x).unflatten(-1, (sum(split), -1)).transpose(1, 2)  # (B, H + 2G, L, K)
        by_blocks = cache is None and self._is_by_blocks(heads)
        if by_blocks:
            heads = widened(heads)
        q, k, v = heads.split(split, dim=1)
        q = rotary.turn(self.query_norm(q))  # (B, H, L, K)
        k = rotary.turn(self.key_norm(k))  # (B, G, L, K)
        if cache is not None:
            k, v = cache.extend(k, v)  # each (B, G, past + L, K)
        y = causal_attention(q, k, v) if by_blocks else self._attend(q, k, v)  # (B, H, L, K)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(2).to(x.dtype)))

    def _is_by_blocks(self, heads: Tensor) -> bool:
        drops = self.training and self.dropout > 0
        return 1 < heads.shape[-2] <= LONGEST and not drops and is_by_hand(heads)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        num_new, num_all = q.shape[-2], k.shape[-2]
        mask = None  # a single new token sees all; from an empty cache, the plain causal mask serves
        if 1 < num_new < num_all:
            mask = torch.ones(num_new, num_all, dtype=torch.bool, device=q.device).tril(num_all - num_new)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=1 < num_new == num_all, enable_gqa=True,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip


class Rotary:
    """Turns pairs of channels by angles proportional to the coordinates (RoPE, arXiv 2104.09864).

    Each axis turns a third of the pairs. Angles are float32 whatever the model's dtype, so they are made anew
    for each batch: a buffer would be cast with the model.
    """

    def __init__(self, coordinates: Tensor, *, head_dim: int, theta: float) -> None:
        """coordinates: (B, L, 3), integers."""
        axes = coordinates.float().split(1, dim=-1)  # each (B, L, 1)
        # no index of the axes: torch's compiler would have to look how long it is
        by_axis = [
            axis * _frequencies(num_pairs, theta, axis.device)
            for axis, num_pairs in zip(axes, _pairs_per_axis(head_dim), strict=True)
        ]
        angles = torch.cat(by_axis, dim=-1)  # (B, L, K/2)
        self.cos = angles.cos().unsqueeze(1)  # (B, 1, L, K/2)
        self.sin = angles.sin().unsqueeze(1)

    def turn(self, x: Tensor) -> Tensor:
        """(B, heads, L, K), the same shape back; channel i is paired with channel i + K/2."""
        if is_by_hand(x):
            return cast(Tensor, cast(Any, _Turn).apply(widened(x), self.cos, self.sin)).to(x.dtype)
        first, second = x.float().chunk(2, dim=-1)
        turned = (first * self.cos - second * self.sin, first * self.sin + second * self.cos)
        return torch.cat(turned, dim=-1).to(x.dtype)


class _Turn(torch.autograd.Function):
    """The same in place: autograd would keep and add up four products, and put their halves together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    """By the angles, or with `way` = -1 back."""
    turned = torch.empty_like(x)
    first, second = x.chunk(2, dim=-1)
    for half, one, other, sign in zip(
        turned.chunk(2, dim=-1), (first, second), (second, first), (-way, way), strict=True
    ):
        torch.mul(one, cos, out=half)
        half.addcmul_(other, sin, value=sign)
    return turned


def _pairs_per_axis(head_dim: int) -> tuple[int, int, int]:
    """Time takes what does not divide by three."""
    num_pairs = head_dim // 2
    return num_pairs - 2 * (num_pairs // NUM_AXES), num_pairs // NUM_AXES, num_pairs // NUM_AXES


def _frequencies(num_pairs: int, theta: float, device: torch.device) -> Tensor:
    """(num_pairs,) of one axis, from 1 down towards 1 / theta."""
    return theta ** (-torch.arange(num_pairs, device=device).float() / num_pairs)


class LayerCache:
    """One layer's keys and values; `num_kv_heads` of each, and room for the whole context."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values  # each (B, G, context, K)
        self.length = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, G, L, K); gives all that is held so far."""
        end = self.length + k.shape[-2]
        assert end <= self._keys.shape[-2], "the sequence outgrew its cache"
        self._keys[:, :, self.length : end] = k
        self._values[:, :, self.length : end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]
