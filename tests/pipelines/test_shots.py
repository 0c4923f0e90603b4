"""Cuts are found where there are some, and nowhere else: ffmpeg's moving pictures put one after another."""

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from pipelines.decoding.decode import read_frames
from pipelines.selection.shots import find_cuts
from tests.media import make_video

pytestmark = pytest.mark.slow

FPS = 8.0
PICTURES = (
    "testsrc2=size=160x120:rate=25",
    "mandelbrot=size=160x120:rate=25",
    "life=size=160x120:rate=25:mold=10:ratio=0.2:death_color=#C83232:life_color=#00ff00:seed=1",
    "gradients=size=160x120:rate=25:speed=0.05:seed=3",
    "smptehdbars=size=160x120:rate=25",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Scenes of three seconds without a cut, each (24, 64, 64, 3)."""
    folder = tmp_path_factory.mktemp("scenes")
    paths: list[Path] = [
        make_video(folder / f"{number}.mkv", source=source, seconds=4, options=("-c:v", "ffv1"))
        for number, source in enumerate(PICTURES)
    ]
    return [read_frames(str(path), size=64, fps=FPS, num_frames=24, start_seconds=1) for path in paths]


def grey(frames: np.ndarray) -> np.ndarray:
    """In black and white, and of less contrast, as old films are."""
    light = 48 + 0.6 * (frames @ np.array([0.299, 0.587, 0.114]))
    return np.repeat(light.astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("look", [np.asarray, grey])
@pytest.mark.parametrize("seed", range(4))
def test_every_cut_is_found_and_nothing_else(
    scenes: list[np.ndarray], seed: int, look: Callable[[np.ndarray], np.ndarray]
) -> None:
    rng = np.random.default_rng(seed)
    scenes = [look(scene) for scene in scenes]
    order = rng.permutation(len(scenes))
    parts = [scenes[number][: rng.integers(2, 24)] for number in order]
    frames = np.concatenate(parts)
    cuts = list(accumulate(len(part) for part in parts))[:-1]
    assert find_cuts(frames, tuple(range(len(frames))), FPS) == cuts


def pan(picture: np.ndarray) -> np.ndarray:
    """A camera that moves an eighth of the picture a frame."""
    return np.stack([np.roll(picture, -8 * number, axis=1) for number in range(24)])


def zoom(picture: np.ndarray) -> np.ndarray:
    places = [np.linspace(side, 63 - side, 64).astype(int) for side in range(24)]
    return np.stack([picture[place][:, place] for place in places])


def flicker(picture: np.ndarray) -> np.ndarray:
    """Light that changes by a tenth from frame to frame."""
    gains = 1 + 0.1 * np.sin(np.arange(24))[:, None, None, None]
    return np.clip(picture * gains, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("look", [np.asarray, grey])
@pytest.mark.parametrize("move", [pan, zoom, flicker])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_motion_and_light_are_no_cut(
    scenes: list[np.ndarray],
    move: Callable[[np.ndarray], np.ndarray],
    number: int,
    look: Callable[[np.ndarray], np.ndarray],
) -> None:
    frames = move(look(scenes[number][12]))
    assert find_cuts(frames, tuple(range(24)), FPS) == []


def test_a_slow_video_shown_fast_has_the_same_cuts(scenes: list[np.ndarray]) -> None:
    pictures = np.concatenate([scenes[0][:6], scenes[1][:6]])
    repeated = tuple(number // 4 for number in range(48))
    assert find_cuts(pictures[list(repeated)], repeated, FPS) == [24]
    assert find_cuts(pictures, tuple(range(12)), FPS) == [6]


def test_where_there_is_nothing_to_compare_there_is_no_cut(scenes: list[np.ndarray]) -> None:
    assert find_cuts(scenes[0][:0], (), FPS) == []
    assert find_cuts(scenes[0][:1], (0,), FPS) == []
