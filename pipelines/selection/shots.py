"""Where one shot ends and the next begins, found on the sampled frames: the one door to PySceneDetect.

Its ContentDetector proposes every change large enough to be a cut. Frames sampled a few times a second also
differ by as much where the camera moves fast, so a proposal stands only where the colours change as well, and
more than around it: motion moves the colours of a picture, a cut exchanges them. Colours are compared first,
and the detector is asked where they change, since it takes five times as long.
"""

from functools import cache
from typing import Any

import numpy as np

MIN_CONTENT = 15.0
"""Mean change of hue, saturation and value, of 255, that is worth a second look: what PySceneDetect's
AdaptiveDetector asks at least."""
MIN_COLOUR_CHANGE = 0.3
"""Share of the pixels whose colour another picture would have to exchange."""
MIN_RATIO = 2.0
"""Of the colour change at a cut to the median of those around it."""
WINDOW = 2
"""Changes before and after that count as around."""
COMPARED_PIXELS = 64
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
    changes = _colour_changes(pictures)
    exchanged = [n for n in range(1, len(pictures)) if _stands_out(changes, n)]
    return [starts[n] for n in exchanged if _is_proposed(pictures[n - 1], pictures[n], fps)]


def _reduced(picture: np.ndarray) -> np.ndarray:
    """The picture with its shorter side at about COMPARED_PIXELS: small motion matters less, and the time."""
    factor = min(picture.shape[:2]) // COMPARED_PIXELS
    if factor < 2:
        return picture
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    return np.asarray(_cv2().resize(picture, (width, height), interpolation=_cv2().INTER_AREA))


def _is_proposed(before: np.ndarray, after: np.ndarray, fps: float) -> bool:
    """Whether the detector takes the second of two pictures for the first of a shot."""
    from scenedetect import FrameTimecode

    detector = _detectors().ContentDetector(threshold=MIN_CONTENT, min_scene_len=0)
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


def _colour_changes(pictures: list[np.ndarray]) -> np.ndarray:
    """(N,): of each picture's colours to those of the one before; that of the first is 0."""
    histograms = np.stack([_histogram(picture) for picture in pictures])
    return np.concatenate([np.zeros(1, np.float32), np.abs(np.diff(histograms, axis=0)).sum(axis=1) / 2])


def _histogram(picture: np.ndarray) -> np.ndarray:
    """Share of the pixels in each bin of colour."""
    hsv = _cv2().cvtColor(picture, _cv2().COLOR_RGB2HSV)
    counts = _cv2().calcHist([hsv], [0, 1, 2], None, COLOUR_BINS, HSV_RANGES)
    return np.asarray(counts.ravel() / np.float32(hsv.shape[0] * hsv.shape[1]))


def _stands_out(changes: np.ndarray, at: int) -> bool:
    if changes[at] < MIN_COLOUR_CHANGE:
        return False
    around = [changes[n] for n in range(at - WINDOW, at + WINDOW + 1) if 0 < n < len(changes) and n != at]
    usual = float(np.median(around)) if around else 0.0
    return bool(changes[at] >= MIN_RATIO * usual)
