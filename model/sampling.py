"""Fills the blanks of a sequence, one code at a time, keeping the keys and values of what came before."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import ConfigError
from model import tasks
from model.gpt import GPT, KVCache
from model.vocabulary import FIRST_CODE, Vocabulary


@torch.inference_mode()
def sample(
    gpt: GPT,
    vocabulary: Vocabulary,
    prefix: tasks.Sequence,
    grid: tasks.Grid,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """The codes (t, h, w) of the whole clip: those that `Task.prefix` gave, and the blanks filled in.

    `temperature` 0 takes the likeliest code each time; `top_k` draws from the k likeliest alone.
    """
    _check_draw(temperature, top_k)
    num_given = int((~prefix.is_target).sum())
    assert num_given > 0 and not prefix.is_target[:num_given].any(), "what is given must come first"
    device = gpt.norm.weight.device
    tokens = torch.from_numpy(prefix.tokens.copy()).unsqueeze(0).to(device)  # (1, L)
    coordinates = torch.from_numpy(prefix.coordinates).unsqueeze(0).to(device)  # (1, L, 3)
    generator = torch.Generator().manual_seed(seed)
    with _evaluating(gpt):
        cache = KVCache(gpt, batch_size=1, num_tokens=tokens.shape[1])
        done = 0
        for blank in range(num_given, tokens.shape[1]):
            logits = gpt(tokens[:, done:blank], coordinates[:, done:blank], cache)[0, -1]  # (V,)
            tokens[0, blank] = draw_code(logits, vocabulary, generator, temperature=temperature, top_k=top_k)
            done = blank
    filled = tasks.Sequence(tokens[0].cpu().numpy(), prefix.coordinates, prefix.is_target)
    return tasks.codes_of(filled, grid)


def draw_code(
    logits: Tensor,
    vocabulary: Vocabulary,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> int:
    """A token drawn from logits (V,), always a code; on the CPU, so that a seed means one thing."""
    of_codes = logits[FIRST_CODE : vocabulary.first_action].float().cpu()
    if temperature == 0.0:
        return FIRST_CODE + int(of_codes.argmax())
    if top_k is not None and top_k < len(of_codes):
        of_codes[of_codes < of_codes.topk(top_k).values[-1]] = -torch.inf
    probabilities = torch.softmax(of_codes / temperature, dim=0)
    return FIRST_CODE + int(torch.multinomial(probabilities, 1, generator=generator))


def _check_draw(temperature: float, top_k: int | None) -> None:
    if temperature < 0.0:
        raise ConfigError(f"temperature={temperature} is negative; 0 takes the likeliest code each time")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k={top_k} must be at least 1")


@contextmanager
def _evaluating(gpt: GPT) -> Iterator[None]:
    """Dropout off, and afterwards as it was."""
    was_training = gpt.training
    gpt.eval()
    try:
        yield
    finally:
        gpt.train(was_training)
