"""Numbers by which models are judged, and the baselines that they must beat. Pure numpy.

Shapes: frames (..., H, W, 3) uint8; codes (t, h, w) integers. Losses are in nats.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Codes = NDArray[np.integer]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
BIGRAM_BACKOFF = 5.0
"""How many observations the unigram is worth when the bigram backs off to it."""


def psnr(a: Frames, b: Frames) -> float:
    """Peak signal-to-noise ratio in dB over all that is given; infinite when equal."""
    mean_squared_error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if mean_squared_error == 0.0 else 10.0 * math.log10(255.0**2 / mean_squared_error)


def ssim(a: Frames, b: Frames) -> float:
    """Mean structural similarity (Wang et al. 2004) of the luma, under a Gaussian of 11 pixels, sigma 1.5."""
    x, y = _luma(a), _luma(b)  # (N, H, W)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float(np.mean(luminance * structure))


def codebook_usage(codes: Codes, num_codes: int) -> float:
    """The share of the codebook that occurs."""
    return len(np.unique(codes)) / num_codes


def codebook_perplexity(codes: Codes) -> float:
    """How many codes, equally likely, would be as hard to guess."""
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def bits_per_pixel(nats_per_code: float, *, num_codes: int, num_pixels: int) -> float:
    """What a model that pays `nats_per_code` needs for the `num_pixels` that `num_codes` codes stand for."""
    return nats_per_code / math.log(2) * num_codes / num_pixels


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over codes, so that parts can be added."""

    nats: float
    num_codes: int

    @property
    def mean(self) -> float:
        return self.nats / self.num_codes

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.nats + other.nats, self.num_codes + other.num_codes)


class CodeBaselines:
    """Counts of training codes, and what two models that only count would lose on others.

    Unigram, add-one:  P(c) = (n(c) + 1) / (n + num_codes)
    Bigram, backing off:  P(c | p) = (n(p, c) + k P(c)) / (n(p) + k), where p is the code at the same place in
    the frame before, n(p, c) how often c followed p, and k = BIGRAM_BACKOFF. In a first frame: P(c).
    """

    def __init__(self, clips: Iterable[Codes], num_codes: int) -> None:
        self.num_codes = num_codes
        self._counts = np.zeros(num_codes, dtype=np.int64)
        pairs: list[Counts] = []
        for codes in clips:
            self._counts += np.bincount(codes.reshape(-1), minlength=num_codes)
            pairs.append(_pairs(codes[:-1], codes[1:], num_codes))
        self._count_pairs(np.concatenate(pairs) if pairs else np.zeros(0, dtype=np.int64))

    def unigram(self, codes: Codes, *, first_frame: int = 0) -> Loss:
        """The loss on the frames of a clip from `first_frame` on."""
        target = codes[first_frame:]
        return _loss(self._unigram(target))

    def bigram(self, codes: Codes, *, first_frame: int = 0) -> Loss:
        """The loss on the frames of a clip from `first_frame` on, each given the true one before it."""
        if first_frame == 0:
            return self.unigram(codes[:1]) + self.bigram(codes, first_frame=1)
        given, target = codes[first_frame - 1 : -1], codes[first_frame:]
        followed = self._num_pairs(_pairs(given, target, self.num_codes))
        backoff = BIGRAM_BACKOFF * self._unigram(target).reshape(-1)
        return _loss((followed + backoff) / (self._num_given[given.reshape(-1)] + BIGRAM_BACKOFF))

    def _count_pairs(self, pairs: Counts) -> None:
        """Kept as sorted distinct pairs: most of num_codes squared never occur."""
        self._pairs, self._pair_counts = np.unique(pairs, return_counts=True)
        self._num_given = np.zeros(self.num_codes, dtype=np.int64)
        np.add.at(self._num_given, self._pairs // self.num_codes, self._pair_counts)

    def _unigram(self, codes: Codes) -> Floats:
        probabilities: Floats = (self._counts[codes] + 1) / (self._counts.sum() + self.num_codes)
        return probabilities

    def _num_pairs(self, pairs: Counts) -> Counts:
        if not len(self._pairs):
            return np.zeros(len(pairs), dtype=np.int64)
        at = np.searchsorted(self._pairs, pairs).clip(max=len(self._pairs) - 1)
        return np.where(self._pairs[at] == pairs, self._pair_counts[at], 0)


def _pairs(given: Codes, following: Codes, num_codes: int) -> Counts:
    """Each code and the one after it at the same place, as one number."""
    return given.reshape(-1).astype(np.int64) * num_codes + following.reshape(-1)


def _loss(probabilities: Floats) -> Loss:
    return Loss(float(-np.log(probabilities).sum()), probabilities.size)


def _luma(frames: Frames) -> Floats:
    luma: Floats = frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return luma.reshape(-1, *frames.shape[-3:-1])


def _blur(x: Floats) -> Floats:
    """(N, H, W) to (N, H - 10, W - 10): only where the window lies inside."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    for axis in (1, 2):
        x = np.lib.stride_tricks.sliding_window_view(x, 11, axis=axis) @ window
    return x
