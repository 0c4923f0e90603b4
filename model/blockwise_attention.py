"""Causal attention on a CPU for sequences of some hundred tokens, forward and backward by blocks of queries.

torch's kernel for a CPU takes one head and a few queries at a time, and computes the weights of attention
again for their gradient, as FlashAttention does (arXiv 2205.14135). Where the weights are small enough to
keep, the queries that share keys go into one product with them, over all sequences at once; a block
multiplies no keys that none of its queries sees.

Shapes: B sequences, L tokens, H heads of queries, G heads of keys and values, R = H / G, K head width,
M = B x G, n queries of a block, e keys up to its end.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512
"""Tokens whose weights are kept: H x L x (L + n) / 2 numbers a sequence, less than the feed-forward keeps."""
QUERIES_PER_BLOCK = 64


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, L, K) of q and (B, G, L, K) of k and v to (B, H, L, K), laid out as (B, L, H, K)."""
    _, num_heads, length, width = q.shape
    group = num_heads // k.shape[1]
    by_group = q.unflatten(1, (-1, group)).transpose(2, 3)  # (B, G, L, R, K)
    queries = by_group.reshape(-1, length * group, width)  # (M, L x R, K)
    keys, values = (x.reshape(-1, length, width) for x in (k, v))  # (M, L, K)
    with torch.autocast("cpu", enabled=False):
        y = cast(Tensor, cast(Any, _CausalAttention).apply(queries, keys, values))  # (M, L x R, K)
    return y.view(by_group.shape).transpose(1, 2).flatten(2, 3).transpose(1, 2)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ctx.scale = 1.0 / math.sqrt(keys.shape[-1])
        y, totals = torch.empty_like(queries), queries.new_empty(*queries.shape[:2], 1)
        kept = []
        for rows, end, future in _blocks(queries, keys):
            # powers of 2 cost half of those of e
            scores = _product(queries[:, rows], keys[:, :end].mT, ctx.scale * math.log2(math.e))
            scores.unflatten(1, (len(future), -1))[..., -len(future) :].add_(future)
            weights = scores.sub_(scores.amax(dim=2, keepdim=True)).exp2_()  # (M, n x R, e)
            torch.sum(weights, dim=2, keepdim=True, out=totals[:, rows])
            torch.bmm(weights, values[:, :end], out=y[:, rows])
            kept.append(weights)
        ctx.save_for_backward(queries, keys, values, y.div_(totals), totals, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            return _CausalAttention._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, y, totals, *kept = ctx.saved_tensors
        of_sums = grad / totals  # of the sums of values by weights that do not yet add up to 1
        along = (of_sums * y).sum(dim=2, keepdim=True)  # (M, L x R, 1)
        of_queries, of_keys, of_values = (torch.zeros_like(x) for x in (queries, keys, values))
        for weights, (rows, end, _) in zip(kept, _blocks(queries, keys), strict=True):
            of_values[:, :end].baddbmm_(weights.mT, of_sums[:, rows])
            of_scores = torch.bmm(of_sums[:, rows], values[:, :end].mT)  # (M, n x R, e)
            of_scores.sub_(along[:, rows]).mul_(weights)
            torch.bmm(of_scores, keys[:, :end], out=of_queries[:, rows])
            of_keys[:, :end].baddbmm_(of_scores.mT, queries[:, rows])
        return of_queries.mul_(ctx.scale), of_keys.mul_(ctx.scale), of_values


def _product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(one.new_empty(()), one, other, beta=0.0, alpha=scale)


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
    """Rows of a block of queries, where its keys end, and -inf for those of its own ahead (n, 1, n)."""
    length, group = keys.shape[1], queries.shape[1] // keys.shape[1]
    size = -(-length // -(-length // QUERIES_PER_BLOCK))
    future = keys.new_full((size, size), -math.inf).triu_(1).unsqueeze(1)
    for start in range(0, length, size):
        end = min(start + size, length)
        yield slice(start * group, end * group), end, future[: end - start, :, : end - start]
