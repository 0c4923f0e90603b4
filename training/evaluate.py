"""Numbers of a finished model on held-out clips, always beside baselines that cost nothing.

Shapes: frames (T, H, W, 3) uint8; codes (t, h, w). Losses are in nats per target code.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import metrics
from model.bundle import load_gpt, load_tokenizer
from model.config import TokenizerConfig
from model.gpt import GPT
from model.tasks import Sequence, Task, collate
from model.tokenizer import Tokenizer, resize
from model.vocabulary import Vocabulary
from training.engine.on_device import device_of, on_device
from training.judged import Judged
from training.loading.shelf import Clip, Shelf, clips_of_some_groups, stored_clips

MAX_CLIPS = 256
COUNTED_CODES = 1 << 24
"""Of the training set, for the baselines. One process reads them while the others wait, so a large set is not
read whole."""
SSIM_PIXELS = 11
"""The side of the window that SSIM looks through."""


def evaluate_judged(judged: Judged, *, max_clips: int = MAX_CLIPS) -> dict[str, Any]:
    """Numbers of the model in a bundle on the held-out clips that it fits; on a GPU where there is one."""
    uri, train, validation = judged.bundle.uri, (judged.train,), (judged.validation,)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if judged.objective is None:
        tokenizer = load_tokenizer(uri)
        return on_device(tokenizer, device, lambda m: evaluate_tokenizer(m, validation, max_clips=max_clips))
    gpt, vocabulary, tokenizer = load_gpt(uri)
    parts = vocabulary, tokenizer.config, judged.objective.build_task(), train, validation
    return on_device(gpt, device, lambda m: evaluate_gpt(m, *parts, max_clips=max_clips))


@torch.inference_mode()
def evaluate_tokenizer(
    tokenizer: Tokenizer, validation: tuple[Shelf, ...], *, max_clips: int = MAX_CLIPS
) -> dict[str, Any]:
    """PSNR and SSIM of held-out frames, beside the mean colour of every square that one code stands for.

    What has no finite value is left out: the PSNR of equal pictures, the SSIM of pictures below its window.
    """
    config = tokenizer.config
    truth, rebuilt, codes = [], [], []
    for _, clip in stored_clips(validation, max_clips=max_clips):
        frames = as_seen(clip, config)
        clip_codes = tokenizer.encode(torch.from_numpy(frames)[None].to(device_of(tokenizer)))
        rebuilt.append(tokenizer.decode(clip_codes)[0].cpu().numpy())
        truth.append(frames)
        codes.append(clip_codes[0].cpu().numpy())
    if not truth:
        return {}
    all_truth, all_rebuilt = np.concatenate(truth), np.concatenate(rebuilt)
    all_codes = np.concatenate(codes)
    psnr = {
        "val_psnr": metrics.psnr(all_truth, all_rebuilt),
        "val_psnr_mean_colour": metrics.psnr(all_truth, mean_colours(all_truth, config.downsample)),
    }
    ssim = metrics.ssim(all_truth, all_rebuilt) if config.frame_size >= SSIM_PIXELS else math.nan
    return {name: value for name, value in (psnr | {"val_ssim": ssim}).items() if math.isfinite(value)} | {
        "codebook_usage": metrics.codebook_usage(all_codes, config.num_codes),
        "codebook_perplexity": metrics.codebook_perplexity(all_codes),
        "code_bits_per_pixel": float(np.log2(config.num_codes)) / config.downsample**2,
        "val_clips": len(truth),
    }


@torch.inference_mode()
def evaluate_gpt(
    gpt: GPT,
    vocabulary: Vocabulary,
    tokenizer: TokenizerConfig,
    task: Task,
    train: tuple[Shelf, ...],
    validation: tuple[Shelf, ...],
    *,
    max_clips: int = MAX_CLIPS,
) -> dict[str, Any]:
    """Teacher-forced loss on the clips of `validation`, beside what counting codes, or pairs, of `train`, or
    of COUNTED_CODES evenly from it, would lose."""
    counted = clips_of_some_groups(train, max_values=COUNTED_CODES)
    baselines = metrics.CodeBaselines(counted, vocabulary.num_codes)
    losses = {name: metrics.Loss(0.0, 0) for name in ("val_loss", "val_loss_unigram", "val_loss_bigram")}
    num_clips = 0
    for _, codes in stored_clips(validation, max_clips=max_clips):
        sequence = task.build(codes, vocabulary)
        first_frame = len(codes) - int(sequence.is_target.sum()) // codes[0].size
        losses["val_loss"] += sequence_loss(gpt, sequence)
        losses["val_loss_unigram"] += baselines.unigram(codes, first_frame=first_frame)
        losses["val_loss_bigram"] += baselines.bigram(codes, first_frame=first_frame)
        num_clips += 1
    if not num_clips:
        return {}
    means = {name: loss.mean for name, loss in losses.items()}
    bits = metrics.bits_per_pixel(means["val_loss"], num_codes=1, num_pixels=tokenizer.downsample**2)
    return means | {"val_bits_per_pixel": bits, "val_clips": num_clips}


def sequence_loss(gpt: GPT, sequence: Sequence) -> metrics.Loss:
    """Nats that the GPT pays for the target tokens of one sequence."""
    batch = collate([sequence])
    tokens, coordinates, is_target = (
        values.to(device_of(gpt)) for values in (batch.tokens, batch.coordinates, batch.is_target[:, 1:])
    )
    logits = gpt(tokens[:, :-1], coordinates[:, :-1])[is_target].float()
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][is_target], reduction="sum")
    return metrics.Loss(float(loss), len(logits))


def as_seen(clip: Clip, config: TokenizerConfig) -> NDArray[np.uint8]:
    """The centre square of a clip's frames at the size that the tokenizer was made for."""
    height, width = clip.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = torch.from_numpy(clip[:, top : top + side, left : left + side].copy())
    frames: NDArray[np.uint8] = resize(crop, (config.frame_size, config.frame_size)).numpy()
    return frames


def mean_colours(frames: NDArray[np.uint8], downsample: int) -> NDArray[np.uint8]:
    """Frames (N, H, W, 3) with every square of `downsample` pixels a side filled with its mean."""
    count, height, width, _ = frames.shape
    cells = frames.reshape(count, height // downsample, downsample, width // downsample, downsample, 3)
    means = cells.mean(axis=(2, 4), keepdims=True).round().astype(np.uint8)
    return np.broadcast_to(means, cells.shape).reshape(frames.shape)
