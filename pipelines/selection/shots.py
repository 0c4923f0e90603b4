"""Where one shot ends and the next begins, found on the sampled frames: the one door to PySceneDetect.

Its ContentDetector proposes every change large enough to be a cut. Frames sampled a few times a second also
differ by as much where the camera moves fast, so a proposal stands only where the colours change as well, and
more than around it: motion moves the colours of a picture, a cut exchanges them. Colours are compared first,
and the detector is asked where they change, since it takes five times as long. Black and white pictures have
no colours: there the light is compared, place by place.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

MIN_CONTENT = 15.0
"""Mean change of hue, saturation and value, of 255, that is worth a second look: what PySceneDetect's
AdaptiveDetector asks at least."""
MIN_CHANGE = 0.3
"""Share of the pixels whose colour, or light, another picture would have to exchange."""
MIN_RATIO = 2.0
"""Of the change at a cut to the median of those around it."""
WINDOW = 2
"""Changes before and after that count as around."""
COMPARED_PIXELS = 64
GREY_LEVELS = 8.0
"""Mean distance of the strongest and the weakest colour, of 255, below which a picture is black and white."""
LIGHT_PLACES, LIGHT_BINS = 4, 32
"""Along each side of a picture, and of the light in each: whole pictures of unlike things have like light."""
COLOUR_BINS = [8, 4, 4]
"""Of hue, saturation and value."""
HSV_RANGES = [0, 180, 0, 256, 0, 256]


def find_cuts(frames: np.ndarray, indices: tuple[int, ...], fps: float) -> list[int]:
    """Positions of the first frame of every shot but the first. frames: (N, H, W, 3) uint8.

    `indices` says which distinct picture each frame shows: a repeat is no change, and hides none.
    """
    starts = [at for at in range(len(indices)) if at == 0 or indices[at] != indices[at - 1]]
    if len(starts) < 2:
        return []
    pictures = [_reduced(frames[at]) for at in starts]
    looks = [_look(picture) for picture in pictures]
    colours = [0.0, *(_distance(before.colours, after.colours) for before, after in pairwise(looks))]
    light = [math.inf, *(_distance(before.light, after.light) for before, after in pairwise(looks))]
    return [
        starts[n]
        for n in range(1, len(pictures))
        if (_stands_out(colours, n) and _is_proposed(pictures[n - 1], pictures[n], fps))
        or (_stands_out(light, n) and _is_proposed(pictures[n - 1], pictures[n], fps, by_light=True))
    ]


def _reduced(picture: np.ndarray) -> np.ndarray:
    """The picture with its shorter side at about COMPARED_PIXELS: small motion matters less, and the time."""
    factor = min(picture.shape[:2]) // COMPARED_PIXELS
    if factor < 2:
        return picture
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    return np.asarray(_cv2().resize(picture, (width, height), interpolation=_cv2().INTER_AREA))


def _is_proposed(before: np.ndarray, after: np.ndarray, fps: float, *, by_light: bool = False) -> bool:
    """Whether the detector takes the second of two pictures for the first of a shot, by their light alone or
    by their colours as well."""
    from scenedetect import FrameTimecode

    detector = _detectors().ContentDetector(threshold=MIN_CONTENT, min_scene_len=0, luma_only=by_light)
    detector.process_frame(FrameTimecode(0, float(fps)), before[:, :, ::-1])
    return bool(detector.process_frame(FrameTimecode(1, float(fps)), after[:, :, ::-1]))


@cache
def _detectors() -> Any:
    from scenedetect import detectors

    return detectors


@cache
def _cv2() -> Any:
    import cv2

    cv2.setNumThreads(1)  # the cores are shared with everybody else's decoding
    return cv2


@dataclass(frozen=True, slots=True)
class _Look:
    colours: np.ndarray
    """Share of the pixels in each bin."""
    light: np.ndarray | None
    """Share of the pixels in each bin of each place; of a black and white picture alone."""


def _look(picture: np.ndarray) -> _Look:
    hsv = _cv2().cvtColor(picture, _cv2().COLOR_RGB2HSV)
    counts = _cv2().calcHist([hsv], [0, 1, 2], None, COLOUR_BINS, HSV_RANGES)
    _, saturation, value = _cv2().split(hsv)
    is_grey = _cv2().mean(_cv2().multiply(saturation, value, scale=1 / 255))[0] < GREY_LEVELS
    return _Look(_shares(counts), _light(value) if is_grey else None)


def _light(value: np.ndarray) -> np.ndarray:
    """value: (H, W) uint8."""
    places = [
        place
        for rows in np.array_split(value, LIGHT_PLACES)
        for place in np.array_split(rows, LIGHT_PLACES, axis=1)
    ]
    bins = [np.bincount(place.ravel() // (256 // LIGHT_BINS), minlength=LIGHT_BINS) for place in places]
    return _shares(np.concatenate(bins))


def _shares(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts.ravel() / np.float32(counts.sum()))


def _distance(before: np.ndarray | None, after: np.ndarray | None) -> float:
    """Share of the pixels that one picture would have to exchange to look as the other; infinite where one of
    them has colours, and light is compared."""
    if before is None or after is None:
        return math.inf
    return float(np.abs(after - before).sum() / 2)


def _stands_out(changes: list[float], at: int) -> bool:
    if not MIN_CHANGE <= changes[at] < math.inf:
        return False
    around = [changes[n] for n in range(at - WINDOW, at + WINDOW + 1) if 0 < n < len(changes) and n != at]
    usual = float(np.median(around)) if around else 0.0
    return changes[at] >= MIN_RATIO * usual
