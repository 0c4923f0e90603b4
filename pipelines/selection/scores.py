"""What a clip is judged by: numbers from its pixels alone, and two hashes that tell whether it came before.

All are cheap beside decoding and, as sums of whole numbers, the same to the last bit on every run of one
build. Which numbers are good enough is `filters`' matter.
"""

import hashlib
from itertools import pairwise

import cv2
import numpy as np

FROZEN_DIFFERENCE = 0.001
"""Mean absolute difference of two frames, of 1, below which the later one shows nothing new: the noise that
ffmpeg's freezedetect allows (-60 dB)."""
BLOCKS_PER_SIDE = 16
"""Of the shorter side, where a frame is searched for text."""
FLAT_LEVELS = 12
"""Levels of 255 within which a block is of one colour, or a block has not changed over the clip."""
STROKE_LEVELS = 64
"""Levels of 255 between letters and what they stand on, at least."""
HASHED_SIDE = 32
"""Pixels along a side of the picture whose perceptual hash is taken, and 8 of its frequencies each way."""
HASHED_FREQUENCIES = 8


def score(frames: np.ndarray) -> dict[str, float]:
    """Scores of a clip's frames (T, H, W, 3) uint8, each in [0, 1] but sharpness, which has no bound.

    brightness   mean luma
    contrast     standard deviation of the luma in a frame (RMS contrast: Peli, 1990), the mean over frames
    sharpness    variance of the Laplacian in a frame, in levels of 255 squared (Pech-Pacheco et al., 2000),
                 the mean over frames: it falls with blur, and grows with the size of the frames
    motion       mean absolute difference of neighbouring frames
    frozen       share of the frames that differ from the one before by less than FROZEN_DIFFERENCE
    text         share of the picture that is a flat ground, or strokes upon it, and stands still
    """
    luma = luma_of(frames)
    differences = _differences(luma)
    return {
        "brightness": cv2.mean(luma.reshape(-1, luma.shape[2]))[0] / 255,
        "contrast": _mean([_deviation(frame) for frame in luma]) / 255,
        "sharpness": _mean([_deviation(cv2.Laplacian(frame, cv2.CV_16S)) ** 2 for frame in luma]),
        "motion": _mean(differences),
        "frozen": _mean([float(difference < FROZEN_DIFFERENCE) for difference in differences]),
        "text": _text_share(luma),
    }


def luma_of(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) to their luma (T, H, W), both uint8 (ITU-R BT.601)."""
    num_frames, height, width, _ = frames.shape
    rows = np.ascontiguousarray(frames).reshape(num_frames * height, width, 3)
    return cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY).reshape(num_frames, height, width)


def content_hash(frames: np.ndarray) -> str:
    """SHA-256 of a clip's shape and pixels: equal for equal clips alone."""
    digest = hashlib.sha256(str(frames.shape).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def perceptual_hash(frames: np.ndarray) -> str:
    """64 bits each of the first, the middle and the last frame, in hex: few differ where pictures look alike.

    A bit says whether one of the 64 lowest frequencies of a frame (DCT of its luma) is above their median
    (pHash: Zauner, 2010).
    """
    chosen = frames[[0, len(frames) // 2, len(frames) - 1]]
    return "".join(_hash_of_picture(luma) for luma in luma_of(chosen))


def _hash_of_picture(luma: np.ndarray) -> str:
    small = cv2.resize(luma, (HASHED_SIDE, HASHED_SIDE), interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(small.astype(np.float32))[:HASHED_FREQUENCIES, :HASHED_FREQUENCIES].ravel()
    frequencies = np.round(lowest)  # a flat picture has none, and no noise of the last bit in their place
    median = np.sort(frequencies[1:])[(len(frequencies) - 1) // 2]  # of an odd number
    return np.packbits(frequencies > median).tobytes().hex()


def _differences(luma: np.ndarray) -> list[float]:
    return [cv2.mean(cv2.absdiff(now, then))[0] / 255 for then, now in pairwise(luma)]


def _deviation(values: np.ndarray) -> float:
    return float(cv2.meanStdDev(values)[1].item())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _text_share(luma: np.ndarray) -> float:
    """Share of the blocks that are ground or text; 0 where no block holds text. luma: (T, H, W) uint8.

    The ground is the level that most flat blocks have. A block of text shows the ground and strokes far from
    it, and little between the two, which is what tells letters from the texture of a photograph.
    """
    side = max(4, min(luma.shape[1:]) // BLOCKS_PER_SIDE)
    first, last = _blocks(luma[0], side), _blocks(luma[-1], side)  # (B, side * side)
    low, high = first.min(axis=1), first.max(axis=1)
    is_still = cv2.absdiff(first, last).max(axis=1) <= FLAT_LEVELS
    is_flat = (high - low <= FLAT_LEVELS) & is_still
    if not is_flat.any():
        return 0.0
    means = first[is_flat].astype(np.uint32).sum(axis=1) // (side * side)
    ground = int(np.bincount(means // FLAT_LEVELS).argmax()) * FLAT_LEVELS + FLAT_LEVELS // 2
    distance = cv2.absdiff(first, np.full_like(first, min(ground, 255)))
    is_ground = is_flat & (distance.max(axis=1) <= 2 * FLAT_LEVELS)
    shows_ground = (distance <= 2 * FLAT_LEVELS).mean(axis=1) >= 0.25
    has_strokes = distance.max(axis=1) >= STROKE_LEVELS
    is_text = is_still & shows_ground & has_strokes
    return float((is_ground | is_text).mean()) if is_text.any() else 0.0


def _blocks(luma: np.ndarray, side: int) -> np.ndarray:
    """(H, W) to its whole squares, (B, side * side)."""
    rows, columns = luma.shape[0] // side, luma.shape[1] // side
    squares = luma[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.ascontiguousarray(squares.swapaxes(1, 2)).reshape(rows * columns, side * side)
