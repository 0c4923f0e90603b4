"""Both decoders, side by side on whole files: which one serves changes no pixel."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.decoding.child import with_decord, with_pyav
from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.shapes import Shape
from pipelines.decoding.child.video import Video
from tests.media import ffmpeg, make_video

pytestmark = pytest.mark.slow

X264 = ("-c:v", "libx264")
X265 = ("-c:v", "libx265", "-x265-params", "log-level=none")
FILES = {
    "h264.mp4": X264,
    "hevc.mp4": X265,
    "10-bit.mkv": (*X265, "-pix_fmt", "yuv420p10le"),
    "full-chroma.mp4": (*X264, "-pix_fmt", "yuv444p"),
    "odd-size.mkv": (*X264, "-vf", "scale=171:131", "-pix_fmt", "yuv444p"),
    "stretched.mp4": (*X264, "-vf", "setsar=4/3"),
    "full-range.mp4": (*X264, "-color_range", "pc"),
    "vp8.webm": ("-c:v", "libvpx"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-q:v", "2"),
    "mjpeg.avi": ("-c:v", "mjpeg"),
    "moving.gif": (),
    "no-b-frames.mp4": (*X264, "-bf", "0", "-g", "7"),
    "varying.mp4": (*X264, "-vf", "select='not(mod(n,3))+not(mod(n,5))'", "-fps_mode", "vfr"),
}


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    reads, writes = os.pipe2(os.O_NONBLOCK)
    yield Complaints(reads)
    os.close(reads)
    os.close(writes)


def both(path: Path, size: int, complaints: Complaints) -> tuple[np.ndarray, np.ndarray]:
    """All frames of a file at 7 a second, (N, size, size, 3) each: decord's, PyAV's."""
    video, whole = Video(str(path), complaints), {"start": 0.0, "end": None, "fps": 7.0}
    shape = Shape.of(video.pixel_aspect, video.first_frame, [(size, size)])
    reader = with_decord.DecordReader(video, shape)
    assert reader.sees_the_same_frames()
    decords = with_decord.sample(reader, whole, complaints)
    assert decords is not None, "decord complained"
    return decords.frames(shape.crop), with_pyav.sample(video, shape, whole, complaints).frames(shape.crop)


@pytest.mark.parametrize("size", [64, pytest.param(136, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_decord_and_pyav_give_the_same_bytes(
    name: str, size: int, tmp_path: Path, complaints: Complaints
) -> None:
    decords, pyavs = both(make_video(tmp_path / name, options=FILES[name]), size, complaints)
    assert len(decords) > 10
    np.testing.assert_array_equal(decords, pyavs)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_pictures_are_the_same_too(degrees: int, tmp_path: Path, complaints: Complaints) -> None:
    make_video(tmp_path / "flat.mp4", options=X264)
    turned = ("-display_rotation", str(degrees), "-i", str(tmp_path / "flat.mp4"), "-c", "copy")
    ffmpeg(*turned, str(tmp_path / "turned.mp4"))
    np.testing.assert_array_equal(*both(tmp_path / "turned.mp4", 64, complaints))
