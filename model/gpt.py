"""The visual GPT: a decoder-only transformer over tokens with explicit coordinates.

Pre-norm RMSNorm, SwiGLU, grouped-query attention, untied head; every output projection starts at zero, so
that the network starts as its embeddings. It gives logits; the objective makes a loss of them.

Shapes: B sequences, L tokens, D model, F feed-forward, V vocabulary, N digits of a code.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.errors import ConfigError
from model.attention import Attention, LayerCache, Rotary
from model.config import GPTConfig
from model.quantizer import FSQ
from model.rms_norm import RMSNorm
from model.vocabulary import FIRST_CODE

INIT_STD = 0.02


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.model_dim)
        self.head = TokenHead(config)
        self._initialise()

    def forward(
        self,
        tokens: Tensor,
        coordinates: Tensor,
        cache: "KVCache | None" = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, L) and coordinates (B, L, 3) to logits (B, L, V); those at i are of token i + 1.

        With a cache, the tokens are those after the ones that it holds. With `places` (N,), indices into all
        B x L, the logits are of those alone, (N, V): the rest costs nothing.
        """
        self._check_length(tokens.shape[1] + (cache.length if cache else 0))
        rotary = Rotary(coordinates, head_dim=self.config.head_dim, theta=self.config.rope_theta)
        x = self.dropout(self.embedding(tokens))  # (B, L, D)
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, cache.layers[i] if cache else None)
        if places is not None:
            x = x.flatten(0, 1).index_select(0, places)  # (N, D)
        return cast(Tensor, self.head(self.norm(x)))

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.config.context_tokens:
            raise ConfigError(
                f"a sequence of {num_tokens} tokens does not fit "
                f"context_tokens={self.config.context_tokens}; give fewer or smaller frames"
            )

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, Attention | FeedForward):
                nn.init.zeros_(module.out.weight)


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.model_dim)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.model_dim)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Rotary, cache: LayerCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache))
        return x + cast(Tensor, self.dropout(self.feed_forward(self.feed_forward_norm(x))))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.model_dim, config.hidden_dim, bias=False)
        self.up = nn.Linear(config.model_dim, config.hidden_dim, bias=False)
        self.out = nn.Linear(config.hidden_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.out(F.silu(self.gate(x)) * self.up(x)))


class TokenEmbedding(nn.Module):
    """Tokens (B, L) to (B, L, D)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.rows = TokenRows(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.rows())


class TokenHead(nn.Module):
    """(B, L, D) to logits (B, L, V)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.rows = TokenRows(config)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rows())


class TokenRows(nn.Module):
    """A vector for every token (V, D): its own and, with `code_levels`, those of a code's FSQ digits.

    Codes that share a digit look alike: what is learned of one then serves the others too.
    """

    has_digit: Tensor
    """(V, digits): 1 where a code has that value of that digit, so that one product of matrices sums them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.own = nn.Parameter(_random_rows(config.vocabulary_size, config.model_dim))
        self.of_digits: nn.Parameter | None = None
        if config.code_levels:
            num_rows = sum(config.code_levels)
            self.of_digits = nn.Parameter(_random_rows(num_rows, config.model_dim))
            has_digit = _has_digit(config.code_levels, config.vocabulary_size)
            self.register_buffer("has_digit", has_digit, persistent=False)

    def forward(self) -> Tensor:
        if self.of_digits is None:
            return self.own.clone()  # ZeRO-3 lets the parameter itself go after this call
        has_digit = self.has_digit.to(self.own.dtype)  # DeepSpeed casts weights alone
        return torch.addmm(self.own, has_digit, self.of_digits)


def _random_rows(num_rows: int, model_dim: int) -> Tensor:
    return torch.empty(num_rows, model_dim).normal_(std=INIT_STD)


def _has_digit(levels: tuple[int, ...], vocabulary_size: int) -> Tensor:
    """The values of all digits stand side by side, those of the first digit first."""
    starts = torch.tensor([sum(levels[:i]) for i in range(len(levels))])
    digits = FSQ(levels).digits(torch.arange(math.prod(levels))) + starts  # (codes, N)
    has_digit = torch.zeros(vocabulary_size, sum(levels))
    has_digit[FIRST_CODE : FIRST_CODE + len(digits)].scatter_(1, digits, 1.0)
    return has_digit


class KVCache:
    """Keys and values of every layer for sampling; its size is fixed when it is made."""

    def __init__(self, gpt: GPT, *, batch_size: int, num_tokens: int) -> None:
        """`num_tokens`: the longest sequence that it will hold."""
        config, weight = gpt.config, gpt.norm.weight
        shape = (batch_size, config.num_kv_heads, num_tokens, config.head_dim)
        layers = range(config.num_layers)
        self.layers = [LayerCache(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in layers]

    @property
    def length(self) -> int:
        """Tokens held so far."""
        return self.layers[0].length
