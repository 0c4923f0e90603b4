"""Where one shot ends and the next begins, found on the sampled frames: the one door to PySceneDetect.

Its ContentDetector proposes every change large enough to be a cut. Frames sampled a few times a second also
differ by as much where the camera moves fast, so a proposal stands only where the colours change as well, and
more than around it: motion moves the colours of a picture, a cut exchanges them.
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
COLOUR_BINS = (8, 4, 4)
"""Of hue, saturation and value."""
HSV_RANGES = [0, 180, 0, 256, 0, 256]


def find_cuts(frames: np.ndarray, indices: tuple[int, ...], fps: float) -> list[int]:
    """Positions of the first frame of every shot but the first. frames: (N, H, W, 3) uint8.

    `indices` says which distinct picture each frame shows: a repeat is no change, and hides none.
    """
    starts = [at for at in range(len(indices)) if at == 0 or indices[at] != indices[at - 1]]
    pictures = [_reduced(frames[at]) for at in starts]
    proposed = _proposed(pictures, fps)
    changes = _colour_changes(pictures, proposed)
    return [starts[at] for at in proposed if _stands_out(changes, at, len(pictures))]


def _reduced(picture: np.ndarray) -> np.ndarray:
    """The picture with its shorter side at about COMPARED_PIXELS: small motion matters less, and the time."""
    import cv2

    factor = min(picture.shape[:2]) // COMPARED_PIXELS
    if factor < 2:
        return picture
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _proposed(pictures: list[np.ndarray], fps: float) -> list[int]:
    from scenedetect import FrameTimecode

    detector = _detectors().ContentDetector(threshold=MIN_CONTENT, min_scene_len=1)
    found: list[int] = []
    for number, picture in enumerate(pictures):
        timecode = FrameTimecode(number, float(fps))
        found += [cut.frame_num for cut in detector.process_frame(timecode, picture[:, :, ::-1])]
    return sorted({number for number in found if number > 0})


@cache
def _detectors() -> Any:
    import cv2
    from scenedetect import detectors

    cv2.setNumThreads(1)  # the cores are shared with everybody else's decoding
    return detectors


def _colour_changes(pictures: list[np.ndarray], proposed: list[int]) -> dict[int, float]:
    """The change of colours at every proposal and around it, by the number of the later picture."""
    around = {n for at in proposed for n in range(at - WINDOW, at + WINDOW + 1) if 0 < n < len(pictures)}
    histograms = {n: _histogram(pictures[n]) for n in sorted(around | {n - 1 for n in around})}
    return {n: float(np.abs(histograms[n] - histograms[n - 1]).sum()) / 2 for n in around}


def _histogram(picture: np.ndarray) -> np.ndarray:
    """Share of the pixels in each bin of colour."""
    import cv2

    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist([hsv], [0, 1, 2], None, list(COLOUR_BINS), HSV_RANGES)
    return counts.ravel() / np.float32(hsv.shape[0] * hsv.shape[1])


def _stands_out(changes: dict[int, float], at: int, num_pictures: int) -> bool:
    around = [changes[n] for n in range(at - WINDOW, at + WINDOW + 1) if 0 < n < num_pictures and n != at]
    usual = float(np.median(around)) if around else 0.0
    return changes[at] >= max(MIN_COLOUR_CHANGE, MIN_RATIO * usual)
