"""Which pictures a span shows, and when: what both decoders fill in the same way."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

TIME_TOLERANCE = 0.0005
"""Seconds: containers that store milliseconds round timestamps by as much as half of one."""


class Sampled:
    """What a decoder gives of a span: distinct pictures, and which of them each sampling time shows."""

    def __init__(self, decoder: str) -> None:
        self.decoder = decoder
        self.pictures: list[np.ndarray] = []
        """(H, W, 3) uint8 each, upright, cut around the centre."""
        self.indices: list[int] = []
        self.num_source_frames = 0
        """Frames the decoder saw; of the whole file where it has an index, else up to the end of the span."""
        self.num_damaged = 0
        """Signs of damage: packets that did not decode, pictures that came out corrupt, complaints."""
        self.ends_seconds = 0.0
        """When the last frame that was seen ends."""

    def frames(self, crop: tuple[int, int]) -> np.ndarray:
        """(N, *crop, 3) uint8, one a sampling time."""
        frames = np.empty((len(self.indices), *crop, 3), np.uint8)
        for frame, index in zip(frames, self.indices, strict=True):
            frame[:] = self.pictures[index]
        return frames

    def shows_the_same(self, other: "Sampled") -> bool:
        return self.indices == other.indices and all(map(np.array_equal, self.pictures, other.pictures))


def sampling_times(request: dict[str, Any]) -> Iterator[float]:
    """start + j / fps, exactly, up to the end of the span, which may be open (None)."""
    start, fps = (Fraction(request[name]).limit_denominator(10**6) for name in ("start", "fps"))
    end = None if request["end"] is None else Fraction(request["end"]).limit_denominator(10**6)
    for j in itertools.count():
        time = start + j / fps
        if end is not None and time >= end:
            return
        yield float(time)


def numbers_shown(request: dict[str, Any], starts: np.ndarray) -> np.ndarray:
    """Which frame of a file each sampling time shows, up to the last frame; (N,) float64 `starts` are the
    seconds at which frames start, sorted."""
    reached = itertools.takewhile(lambda time: time <= starts[-1] + TIME_TOLERANCE, sampling_times(request))
    return np.searchsorted(starts - TIME_TOLERANCE, list(reached), side="right") - 1
