"""Both decoders, side by side on whole files: which one serves changes no pixel."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.decoding.child import by_group, with_decord, with_pyav
from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.sampling import Sampled
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
X265_LAYERS = "log-level=none:temporal-layers=4:bframes=7:b-adapt=0:open-gop=0"
VP8_LAYERS = (
    "ts_number_layers=3:ts_target_bitrate=100,200,300:ts_rate_decimator=4,2,1:ts_periodicity=4:"
    "ts_layer_id=0,2,1,2:ts_layering_mode=3"
)
HAVE_SPARE_PICTURES = {
    "b-frames.mp4": X264,
    "pyramid.mkv": (*X264, "-x264-params", "bframes=8:b-adapt=0:b-pyramid=normal"),
    "layers.mp4": ("-c:v", "libx265", "-x265-params", X265_LAYERS),
    "mpeg2.mkv": ("-c:v", "mpeg2video", "-bf", "2", "-flags", "+cgop", "-sc_threshold", "1000000000"),
    "vp8-layers.webm": ("-c:v", "libvpx", "-ts-parameters", VP8_LAYERS),
}
KEEP_ALL = {
    "one-way.mp4": (*X264, "-bf", "0"),
    "interlaced.mp4": (*X264, "-flags", "+ilme+ildct"),
    "av1.mkv": ("-c:v", "libaom-av1", "-cpu-used", "8"),
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


@pytest.mark.parametrize("name", [*HAVE_SPARE_PICTURES, *KEEP_ALL])
def test_pictures_that_are_passed_over_change_none_that_is_shown(
    name: str, tmp_path: Path, complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which every frame rate but the video's own leaves out some of."""
    rate, options = 25, (HAVE_SPARE_PICTURES | KEEP_ALL)[name]
    video = Video(str(make_video(tmp_path / name, options=options)), complaints)
    decoded, num_decoded = by_group.decoded, 0

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal num_decoded
        for frame in decoded(*arguments):
            num_decoded += 1
            yield frame

    monkeypatch.setattr(by_group, "decoded", counted)

    def shown(start: float, fps: float) -> list[np.ndarray]:
        shape = Shape.of(video.pixel_aspect, video.first_frame, [(64, 64)])
        request = {"start": start, "end": None, "fps": fps}
        sampled: Sampled = with_pyav.sample(video, shape, request, complaints)
        assert not sampled.num_damaged
        return [sampled.pictures[index] for index in sampled.indices]

    every = shown(0.0, rate)
    assert num_decoded == len(every) == 3 * rate
    for start, fps in ((1.3, 3.0), (0.0, 7.0)):
        num_decoded = 0
        few = shown(start, fps)
        expected = [every[int((start + j / fps) * rate + 0.01)] for j in range(len(few))]
        np.testing.assert_array_equal(few, expected)
    assert (num_decoded < 0.8 * len(every)) == (name in HAVE_SPARE_PICTURES)
