"""What a GPT costs in arithmetic: its parameters, the FLOPs of a token, and what a GPU could do. No torch.

Shapes: D model, F feed-forward, K head width, V vocabulary, L tokens, N layers.
"""

import re
from dataclasses import dataclass

from model.config import GPTConfig

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "V100": 125.0,
}
"""Dense bf16 (V100: fp16) of the makers' data sheets, by a word of the device's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTParameters:
    embedding: int
    blocks: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.head

    @property
    def multiplied(self) -> int:
        """Those that a token is multiplied with; an embedding is only looked up."""
        return self.blocks + self.head


def count_parameters(config: GPTConfig) -> GPTParameters:
    model_dim, head_dim = config.model_dim, config.head_dim
    rows = (config.vocabulary_size + sum(config.code_levels)) * model_dim
    attention = model_dim * (config.num_heads + 2 * config.num_kv_heads) * head_dim + model_dim**2
    feed_forward = 3 * model_dim * config.hidden_dim
    norms = 2 * model_dim + 2 * head_dim
    blocks = config.num_layers * (attention + feed_forward + norms)
    return GPTParameters(embedding=rows, blocks=blocks, head=rows + model_dim)


def training_flops_per_token(config: GPTConfig, num_tokens: int) -> float:
    """Forward and backward in sequences of `num_tokens`: 6 N + 12 layers D L (PaLM, app. B).

    The causal half of attention that is never computed is counted, as everybody does (arXiv 2204.02311).
    """
    parameters = count_parameters(config)
    return 6.0 * parameters.multiplied + 12.0 * config.num_layers * config.model_dim * num_tokens


def peak_tflops(device: str) -> float | None:
    """Of a GPU by its name; None where it is not known."""
    words = re.findall(r"[A-Za-z0-9]+", device)
    return next((PEAK_TFLOPS[word] for word in words if word in PEAK_TFLOPS), None)
