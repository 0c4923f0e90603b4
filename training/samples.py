"""Pictures of what a model in training makes of held-out clips: a row of truth above a row of its own."""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.bundle import load_tokenizer
from model.gpt import GPT
from model.sampling import sample
from model.tokenizer import Tokenizer
from training.configs.objective import ReconstructConfig
from training.engine.on_device import device_of, on_device
from training.evaluate import as_seen
from training.loading.shelf import Clip, stored_clips
from training.objectives import Predict, assemble
from training.pictures import film_rows
from training.run import Run

Frames = NDArray[np.uint8]
Weights = dict[str, Tensor]


def drawer(run: Run, device: torch.device) -> Callable[[Weights], bytes] | None:
    """What draws a PNG from a learner's weights, on the device; None where there is nothing to draw."""
    config, data, objective = run.config, run.data, run.objective
    num_samples = config.evaluation.num_samples
    clips = [c for _, c in stored_clips(data.validation, max_clips=num_samples)]
    if not clips:
        return None
    if isinstance(config.objective, ReconstructConfig):
        return lambda weights: on_device(
            cast(Tokenizer, assemble(objective, weights)),
            device,
            lambda tokenizer: _reconstruct(tokenizer, clips),
        )
    assert isinstance(objective, Predict)
    assert data.tokenizer is not None
    tokenizer = load_tokenizer(data.tokenizer.uri)
    num_given = config.objective.num_given
    predict = objective
    return lambda weights: on_device(
        cast(GPT, assemble(predict, weights)),
        device,
        lambda gpt: _predict(gpt, predict, tokenizer, clips, num_given),
    )


def _reconstruct(tokenizer: Tokenizer, clips: list[Clip]) -> bytes:
    rows: list[Frames] = []
    for clip in clips:
        frames = as_seen(clip, tokenizer.config)
        codes = tokenizer.encode(torch.from_numpy(frames)[None].to(device_of(tokenizer)))
        rows += [frames, tokenizer.decode(codes)[0].cpu().numpy()]
    return film_rows(rows)


def _predict(gpt: GPT, objective: Predict, tokenizer: Tokenizer, clips: list[Clip], num_given: int) -> bytes:
    rows: list[Frames] = []
    for clip in clips:
        grid = (clip.shape[0], clip.shape[1], clip.shape[2])
        prefix = objective.task.prefix(clip[:num_given].astype(np.int64), grid, objective.vocabulary)
        codes = sample(gpt, objective.vocabulary, prefix, grid)
        rows += [
            tokenizer.decode(torch.from_numpy(c.astype(np.int64))[None])[0].numpy() for c in (clip, codes)
        ]
    return film_rows(rows)
