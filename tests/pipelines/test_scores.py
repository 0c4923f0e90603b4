"""Scores tell good clips from bad ones, and are the same every time."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipelines.selection.scores import content_hash, perceptual_hash, score


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    """Coloured discs that move over a gradient: (8, 96, 96, 3) uint8."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    frames = np.stack([np.stack([rows, columns, 190 - rows - columns], axis=-1)] * 8)
    for _ in range(30):
        (y, x), (dy, dx), colour = rng.uniform(0, 96, 2), rng.uniform(-6, 6, 2), rng.uniform(0, 255, 3)
        for time in range(8):
            frames[time][(rows - y - time * dy) ** 2 + (columns - x - time * dx) ** 2 < 60] = colour
    return frames.clip(0, 255).astype(np.uint8)


def card(*lines: str, ground: int = 0, ink: int = 255, noise: float = 0.0) -> np.ndarray:
    """A title that stands still for eight frames."""
    image = Image.new("RGB", (96, 96), (ground,) * 3)
    font = ImageFont.load_default(size=16)
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((6, 20 + 20 * number), line, fill=(ink,) * 3, font=font)
    rng = np.random.default_rng(0)
    still = np.asarray(image).astype(float)
    return (
        np.stack([still + rng.normal(0, noise, still.shape) for _ in range(8)]).clip(0, 255).astype(np.uint8)
    )


def test_scores_of_what_is_known() -> None:
    black, white = np.zeros((4, 16, 16, 3), np.uint8), np.full((4, 16, 16, 3), 255, np.uint8)
    assert score(black) == {
        "brightness": 0, "contrast": 0, "sharpness": 0, "motion": 0, "frozen": 1, "text": 0
    }  # fmt: skip
    assert score(white)["brightness"] == 1
    blinking = np.concatenate([black[:1], white[:1], black[:1]])
    assert (score(blinking)["motion"], score(blinking)["frozen"]) == (1, 0)
    striped = black.copy()
    striped[:, ::2] = 255
    assert score(striped)["contrast"] == pytest.approx(0.5)


def test_frozen_is_the_share_of_frames_that_show_nothing_new(moving: np.ndarray) -> None:
    assert score(moving)["frozen"] == 0
    half = moving[[0, 0, 1, 1, 2]]
    assert score(half)["frozen"] == 0.5
    noisy = np.repeat(moving[:1], 8, axis=0)
    noisy[:, ::40, ::40] ^= 1
    assert score(noisy)["frozen"] == 1


def test_blur_lowers_sharpness_and_shade_lowers_brightness_and_contrast(moving: np.ndarray) -> None:
    whole = score(moving)
    blurred = [np.stack([cv2.GaussianBlur(frame, (0, 0), s) for frame in moving]) for s in (1, 2, 4)]
    sharpness = [score(frames)["sharpness"] for frames in (moving, *blurred)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[-1] < 0.1 * sharpness[0]
    shaded = score(moving // 2)
    assert shaded["brightness"] == pytest.approx(whole["brightness"] / 2, abs=0.01)
    assert shaded["contrast"] == pytest.approx(whole["contrast"] / 2, abs=0.01)


def test_text_cards_stand_apart_from_pictures(moving: np.ndarray) -> None:
    cards = [
        card("THE END"),
        card("Directed by", "Jane Q. Doe", "Music", ground=20, ink=220),
        card("Chapter 1", ground=250, ink=10),
        card("Directed by", "Jane Q. Doe", noise=2),
    ]
    assert min(score(frames)["text"] for frames in cards) > 0.9
    pictures = [moving, np.repeat(moving[:1], 8, axis=0), np.full((8, 96, 96, 3), 90, np.uint8)]
    assert max(score(frames)["text"] for frames in pictures) < 0.5
    scrolling = np.stack([np.roll(card("THE END")[0], 6 * time, axis=0) for time in range(8)])
    assert score(scrolling)["text"] < 0.9


def test_scores_and_hashes_are_the_same_every_time_and_need_no_contiguous_frames(moving: np.ndarray) -> None:
    scattered = np.asfortranarray(moving)
    for measure in (score, content_hash, perceptual_hash):
        assert measure(moving) == measure(moving.copy()) == measure(scattered)


def test_one_other_pixel_changes_the_content_hash_alone(moving: np.ndarray) -> None:
    other = moving.copy()
    other[3, 5, 5, 0] ^= 1
    assert content_hash(other) != content_hash(moving)
    assert perceptual_hash(other) == perceptual_hash(moving)


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_the_perceptual_hash_bears_coding_and_size_but_not_another_picture(moving: np.ndarray) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 40]
    coded = np.stack([cv2.imdecode(cv2.imencode(".jpg", f, quality)[1], cv2.IMREAD_COLOR) for f in moving])
    smaller = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in moving])
    hashed = perceptual_hash(moving)
    assert len(hashed) == 48
    assert distance(hashed, perceptual_hash(coded)) <= 12
    assert distance(hashed, perceptual_hash(smaller)) <= 12
    assert distance(hashed, perceptual_hash(moving[:, :, ::-1])) > 40
