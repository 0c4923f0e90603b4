import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pipelines.config import DecodeLimits
from pipelines.decoding.decode import Decoded, Decoder, read_frames
from pipelines.spans import list_videos
from tests.media import (
    MOVING,
    ffmpeg,
    make_bad_files,
    make_still,
    make_video,
    make_video_behind_a_broken_stream,
    make_video_behind_sound,
)  # fmt: skip

pytestmark = pytest.mark.slow

CODECS = {
    "h264.mp4": ("-c:v", "libx264", "-bf", "2"),
    "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none"),
    "vp9.webm": ("-c:v", "libvpx-vp9"),
    "av1.mkv": ("-c:v", "libaom-av1", "-cpu-used", "8"),
    "theora.ogv": ("-c:v", "libtheora"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-q:v", "2"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-q:v", "2"),
    "h264.ts": ("-c:v", "libx264"),
    "flv.flv": ("-c:v", "flv", "-q:v", "2"),
    "moving.gif": (),
}
SLOW_TO_MAKE = ("av1.mkv", "vp9.webm")


X264, MPEG2 = ("-c:v", "libx264", "-preset", "ultrafast"), ("-c:v", "mpeg2video")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none")
BY_SUFFIX = {
    **dict.fromkeys((".h264", ".264", ".avc"), (*X264, "-f", "h264")),
    **dict.fromkeys((".hevc", ".h265", ".265"), (*X265, "-f", "hevc")),
    **dict.fromkeys((".m2t", ".trp", ".tod"), (*X264, "-f", "mpegts")),
    **dict.fromkeys((".mpv", ".mp2v"), (*MPEG2, "-f", "mpeg2video")),
    ".apng": ("-f", "apng"),
    ".dv": ("-s", "720x576", "-pix_fmt", "yuv420p"),
    ".gxf": ("-s", "720x576", *MPEG2),
    ".ivf": ("-c:v", "libvpx"),
    ".jfif": ("-frames:v", "1", "-c:v", "mjpeg", "-f", "image2"),
    ".jp2": ("-frames:v", "1"),
    ".m2p": (*MPEG2, "-f", "vob"),
    ".mk3d": (*X264, "-f", "matroska"),
    ".nut": X264,
    ".obu": ("-c:v", "libsvtav1", "-preset", "11", "-svtav1-params", "lp=1"),
    ".qt": (*X264, "-f", "mov"),
    ".wtv": MPEG2,
}
"""Suffixes that are seldom seen, and how such files come about."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture
def decode() -> Iterator[Callable[..., Decoded]]:
    decoder = Decoder(DecodeLimits(cpu_seconds=20))

    def run(
        path: Path, start_seconds: float = 0.0, end_seconds: float | None = None, size: int = 96
    ) -> Decoded:
        with open(path, "rb") as file:
            return decoder.decode(
                file, start_seconds=start_seconds, end_seconds=end_seconds, fps=5.0, sizes=((size, size),)
            )

    yield run
    decoder.close()


@pytest.mark.slow
def test_a_seldom_seen_suffix_is_taken_from_a_folder_and_its_file_decoded(
    tmp_path: Path, decode: Callable[..., Decoded]
) -> None:
    for suffix, options in BY_SUFFIX.items():
        make_video(tmp_path / f"a{suffix}", seconds=0.4, options=options)
    taken = {file.name.removeprefix("a") for file in list_videos([str(tmp_path)])}
    assert taken == BY_SUFFIX.keys()
    for path in tmp_path.iterdir():
        decoded = decode(path)
        assert (len(decoded.frames) >= 1, decoded.error) == (True, None), path


@pytest.fixture(scope="module")
def reference(folder: Path) -> np.ndarray:
    """What lossless coding gives at 5 frames a second: (15, 96, 96, 3)."""
    path = make_video(folder / "lossless.mkv", options=("-c:v", "ffv1"))
    return read_frames(str(path), size=96, fps=5.0, num_frames=15)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_TO_MAKE else []) for name in sorted(CODECS)],
)
def test_every_format_shows_the_same_frames_at_the_same_times(
    folder: Path, decode: Callable[..., Decoded], reference: np.ndarray, name: str
) -> None:
    decoded = decode(make_video(folder / name, options=CODECS[name]))
    assert decoded.error_class is None
    assert decoded.frames.shape == reference.shape
    error = np.abs(decoded.frames.astype(int) - reference).mean(axis=(1, 2, 3))
    assert error.max() < 9, f"{decoded.decoder} is {error.max():.1f} levels off"


INTERLACED = {
    "interlaced.mp4": ("-c:v", "libx264", "-flags", "+ilme+ildct", "-x264-params", "tff=1"),
    "interlaced.mpg": ("-c:v", "mpeg2video", "-q:v", "2", "-flags", "+ilme+ildct"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*INTERLACED, "behind-sound.ts", "behind-a-broken-stream.mkv"])
def test_odd_streams_show_the_same_frames_too(
    folder: Path, decode: Callable[..., Decoded], reference: np.ndarray, name: str
) -> None:
    if name == "behind-sound.ts":
        path = make_video_behind_sound(folder / name, options=CODECS["h264.ts"])
    elif name == "behind-a-broken-stream.mkv":
        path = make_video_behind_a_broken_stream(folder / name, options=CODECS["h264.mp4"])
    else:
        path = make_video(folder / name, options=INTERLACED[name])
    decoded = decode(path)
    assert decoded.frames.shape == reference.shape, (decoded.error_class, decoded.error)
    error = np.abs(decoded.frames.astype(int) - reference).mean(axis=(1, 2, 3))
    assert error.max() < 9, f"{decoded.decoder} is {error.max():.1f} levels off"


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg2.mpg"])
def test_spans_put_together_are_the_whole(folder: Path, decode: Callable[..., Decoded], name: str) -> None:
    path = make_video(folder / f"spans-{name}", seconds=14, options=(*CODECS[name], "-g", "10"))
    whole = decode(path).frames
    parts = [decode(path, start, end).frames for start, end in ((0.0, 11.0), (11.0, 13.0), (13.0, None))]
    assert [len(part) for part in parts] == [55, 10, 5]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


LONG_GROUPS = {
    "h264.mp4": CODECS["h264.mp4"],
    "h264.mkv": CODECS["h264.mp4"],
    "vp8.webm": ("-c:v", "libvpx"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2"),
    "h264.ts": CODECS["h264.ts"],
    "hevc.ts": CODECS["hevc.mp4"],
    "h264.m2ts": CODECS["h264.ts"],
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-r", "25", "-q:v", "2"),
    "h264.flv": CODECS["h264.ts"],
    "wmv2.wmv": ("-c:v", "wmv2"),
    "theora.ogv": ("-c:v", "libtheora"),
    "moving.gif": (),
    "raw.h264": ("-r", "25", *CODECS["h264.mp4"]),
    "raw.hevc": ("-r", "25", *CODECS["hevc.mp4"]),
    "raw.mjpeg": ("-r", "25", "-c:v", "mjpeg"),
}
ALIKE = ("h264.mkv", "mpeg4.avi", "hevc.ts", "h264.m2ts", "h264.flv", "wmv2.wmv", "moving.gif", "raw.hevc")
"""Their containers or coders are among the others."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in LONG_GROUPS]
)
def test_spans_put_together_are_the_whole_where_key_frames_are_25_seconds_apart(
    folder: Path, decode: Callable[..., Decoded], name: str
) -> None:
    options = (*LONG_GROUPS[name], "-g", "600" if "-r" in LONG_GROUPS[name] else "100")
    source = "testsrc2=size=64x64:rate=4"
    path = make_video(folder / f"groups-{name}", seconds=44, source=source, options=options)
    bounds = (0.0, 13.0, 24.0, 37.0, None)
    parts = [decode(path, start, end, size=32) for start, end in itertools.pairwise(bounds)]
    assert [part.error_class for part in parts] == [None] * len(parts)
    whole = decode(path, size=32).frames
    assert len(whole) > 210
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole)


@pytest.mark.parametrize("later", ["-1000", "1000"])
@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.mpg"])
@pytest.mark.slow
def test_files_joined_into_one_are_shown_one_after_the_other(
    folder: Path, decode: Callable[..., Decoded], name: str, later: str
) -> None:
    first, second = (
        make_video(
            folder / f"{offset}-{name}",
            source=f"testsrc2=size=64x64:rate=25{turned}",
            options=(*CODECS[name], "-g", "10", "-output_ts_offset", offset),
        )
        for offset, turned in (("1000", ""), (str(1000 + int(later)), ",hflip"))
    )
    joined = folder / f"joined{later}-{name}"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    apart = np.concatenate([decode(path).frames for path in (first, second)])
    parts = [decode(joined, start, end) for start, end in ((0.0, 2.0), (2.0, 4.0), (4.0, None))]
    assert [part.error_class for part in parts] == [None] * 3
    together = np.concatenate([part.frames for part in parts])
    assert together.shape == apart.shape
    assert np.abs(together.astype(int) - apart).mean(axis=(1, 2, 3)).max() < 9


def test_frames_before_the_time_zero_are_shown_too(folder: Path, decode: Callable[..., Decoded]) -> None:
    early = ("-output_ts_offset", "-1.5", "-avoid_negative_ts", "disabled", *CODECS["h264.ts"])
    decoded = decode(make_video(folder / "early.mkv", options=early))
    assert len(set(decoded.indices)) == 15


@pytest.mark.parametrize("coder", ["libx264", "libx265"])
def test_a_key_frame_with_frames_before_it_that_need_the_group_before_shows_the_right_ones(
    folder: Path, decode: Callable[..., Decoded], reference: np.ndarray, coder: str
) -> None:
    open_groups = {
        "libx264": ("-x264-params", "open-gop=1:keyint=10:bframes=3"),
        "libx265": ("-x265-params", "open-gop=1:keyint=10:bframes=3:log-level=none"),
    }
    path = make_video(folder / f"open-{coder}.mp4", options=("-c:v", coder, *open_groups[coder]))
    error = np.abs(decode(path).frames.astype(int) - reference).mean(axis=(1, 2, 3))
    assert error.max() < 9, f"{error.max():.1f} levels off"


def test_bad_files_get_their_class(tmp_path: Path, decode: Callable[..., Decoded]) -> None:
    expected = make_bad_files(tmp_path)
    assert {name: decode(tmp_path / name).error_class for name in expected} == expected


def test_a_file_cut_off_in_the_middle_gives_the_frames_before_the_cut(
    folder: Path, decode: Callable[..., Decoded]
) -> None:
    path = make_video(folder / "whole.ts", options=("-c:v", "mpeg2video", "-g", "5"))
    cut = folder / "cut.ts"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    whole, half = decode(path).frames, decode(cut).frames
    assert 4 <= len(half) <= 10
    np.testing.assert_array_equal(half, whole[: len(half)])


def test_what_somebody_wrote_behind_a_whole_file_does_not_make_it_one_that_is_cut_off(
    folder: Path, decode: Callable[..., Decoded]
) -> None:
    path = make_video(folder / "followed.mp4", seconds=1, options=("-c:v", "libx264"))
    path.write_bytes(path.read_bytes() + b"\x7f\0\0\0\xff\xfe\0\1" * 40)
    assert decode(path).error_class is None


def test_a_still_image_is_one_frame(folder: Path, decode: Callable[..., Decoded]) -> None:
    for suffix in ("png", "jpg", "webp"):
        decoded = decode(make_still(folder / f"still.{suffix}"))
        assert decoded.frames.shape == (1, 96, 96, 3)
        assert decoded.num_source_frames == 1


def test_a_still_image_that_is_cut_off_is_truncated(folder: Path, decode: Callable[..., Decoded]) -> None:
    for suffix in ("png", "jpg", "webp"):
        path = make_still(folder / f"cut-still.{suffix}")
        path.write_bytes(path.read_bytes()[:-50])
        decoded = decode(path)
        assert (decoded.error_class, len(decoded.frames)) == ("truncated", 0)


def test_an_animated_webp_is_unsupported(folder: Path, decode: Callable[..., Decoded]) -> None:
    path = make_video(folder / "animated.webp", options=("-c:v", "libwebp_anim"))
    assert decode(path).error_class == "unsupported"


@pytest.mark.parametrize("name", ["theora.ogv", "mpeg2.mpg"])
def test_a_file_that_lacks_its_last_bytes_is_truncated(
    folder: Path, decode: Callable[..., Decoded], name: str
) -> None:
    path = make_video(folder / f"nearly-{name}", options=CODECS[name])
    assert decode(path).error_class is None
    path.write_bytes(path.read_bytes()[:-100])
    assert decode(path).error_class == "truncated"


FRAGMENTS = ("-c:v", "libx264", "-g", "25", "-movflags")


@pytest.mark.parametrize(
    ("name", "options", "ends_behind"),
    [
        ("indexed.mp4", (*FRAGMENTS, "+frag_keyframe+empty_moov+default_base_moof+global_sidx"), b"moof"),
        ("headed.mp4", (*FRAGMENTS, "+frag_keyframe+empty_moov"), b"mdat"),
        ("plain.y4m", (), None),
        ("colourful.y4m", ("-pix_fmt", "yuv444p"), None),
        ("tape.dv", ("-s", "720x576"), None),
        ("frames.ivf", ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8"), None),
        ("animated.apng", ("-f", "apng"), None),
    ],
)
def test_a_file_that_ends_between_its_parts_or_within_a_frame_is_truncated(
    folder: Path,
    decode: Callable[..., Decoded],
    name: str,
    options: tuple[str, ...],
    ends_behind: bytes | None,
) -> None:
    path = make_video(folder / name, seconds=2, options=options)
    data = path.read_bytes()
    assert (decode(path).error_class, len(decode(path).frames)) == (None, 10)
    cut = data.rindex(ends_behind) - 4 if ends_behind else len(data) * 2 // 3 + 1
    path.write_bytes(data[:cut])
    decoded = decode(path)
    assert decoded.error_class == "truncated"
    assert 0 < len(decoded.frames) < 10


@pytest.mark.parametrize("name", ["turned.mp4", "turned.mov"])
def test_a_turned_video_comes_upright(
    folder: Path, decode: Callable[..., Decoded], reference: np.ndarray, name: str
) -> None:
    lying = make_video(
        folder / f"lying-{name}", source=f"{MOVING},transpose=clock", options=("-c:v", "libx264")
    )
    turned = folder / name
    ffmpeg("-display_rotation", "90", "-i", str(lying), "-c", "copy", str(turned))
    error = np.abs(decode(turned).frames.astype(int) - reference).mean()
    assert error < 9


def test_a_mirrored_video_is_shown_as_players_show_it(folder: Path, decode: Callable[..., Decoded]) -> None:
    coded = make_video(folder / "coded.mp4", seconds=0.2, options=("-c:v", "libx264"))
    mirrored, upright = folder / "mirrored.mp4", folder / "upright.mp4"
    for degrees, flip in (("0", "h"), ("90", "v")):
        turn = ("-display_rotation", degrees, f"-display_{flip}flip")
        ffmpeg(*turn, "-i", str(coded), "-c", "copy", str(mirrored))
        ffmpeg("-i", str(mirrored), "-c:v", "libx264", "-qp", "0", str(upright))
        found, wanted = decode(mirrored), decode(upright)
        assert (found.width, found.height) == (wanted.width, wanted.height)
        assert np.abs(found.frames.astype(int) - wanted.frames).mean() < 2


def test_a_photo_is_shown_as_its_exif_says(folder: Path, decode: Callable[..., Decoded]) -> None:
    photo, turned, upright = (folder / name for name in ("photo.png", "turned.png", "upright.png"))
    make_still(photo)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.open(photo).save(turned, exif=exif)
        ImageOps.exif_transpose(Image.open(turned)).save(upright)
        np.testing.assert_array_equal(decode(turned).frames, decode(upright).frames)


def test_frames_are_chosen_by_time_where_the_rate_varies(
    folder: Path, decode: Callable[..., Decoded]
) -> None:
    uneven = "testsrc2=size=160x120:rate=50,select='lt(t,1)+not(mod(n,25))'"
    path = make_video(folder / "uneven.mp4", source=uneven, options=("-fps_mode", "vfr", "-c:v", "libx264"))
    decoded = decode(path)
    assert len(decoded.frames) == 13  # the last frame shows at 2.5 s
    assert len(set(decoded.indices[:6])) == 6
    assert decoded.indices[6:8] == (decoded.indices[5], decoded.indices[5])


def test_pixels_that_are_not_square_are_made_so(folder: Path, decode: Callable[..., Decoded]) -> None:
    squeezed = make_video(
        folder / "squeezed.mp4", source="testsrc2=size=80x120:rate=25,setsar=2/1", options=("-c:v", "libx264")
    )
    square = make_video(
        folder / "square.mp4",
        source="testsrc2=size=80x120:rate=25,scale=160:120,setsar=1",
        options=("-c:v", "libx264"),
    )
    difference = np.abs(decode(squeezed).frames.astype(int) - decode(square).frames).mean()
    assert difference < 9


@pytest.mark.parametrize("ratio", ["100/1", "1/100"])
def test_pixels_so_long_that_one_is_wider_than_what_is_shown_are_shown(
    folder: Path, decode: Callable[..., Decoded], ratio: str
) -> None:
    path = make_video(
        folder / f"sar{ratio[:3].replace('/', '-')}.mp4",
        source=f"color=red:size=160x120:rate=25,setsar={ratio}",
        options=("-c:v", "libx264"),
    )
    decoded = decode(path)
    assert decoded.error_class is None
    assert decoded.frames.shape == (15, 96, 96, 3)
    assert np.abs(decoded.frames - np.array([254, 0, 0])).max() < 9


@pytest.mark.parametrize("source", ["testsrc2=size=320x180:rate=25", "testsrc2=size=120x240:rate=25"])
def test_a_source_goes_to_the_size_nearest_in_aspect_ratio_and_covers_it(folder: Path, source: str) -> None:
    path = make_video(folder / f"{source[14:21]}.mp4", source=source, seconds=1)
    decoder, sizes = Decoder(DecodeLimits()), ((96, 160), (128, 128), (160, 96))
    with open(path, "rb") as file:
        decoded = decoder.decode(file, start_seconds=0, end_seconds=None, fps=5, sizes=sizes)
        square = decoder.decode(file, start_seconds=0, end_seconds=None, fps=5, sizes=((96, 96),))
    decoder.close()
    assert decoded.frames.shape == (5, *(sizes[0] if decoded.width > decoded.height else sizes[2]), 3)
    assert (decoded.width, decoded.height) in [(320, 180), (120, 240)]
    top, left = (decoded.frames.shape[1] - 96) // 2, (decoded.frames.shape[2] - 96) // 2
    centre = decoded.frames[:, top : top + 96, left : left + 96].astype(int)
    assert np.abs(centre - square.frames).mean() < 12  # the same picture, a few per cent larger at most


def test_a_killed_child_is_replaced_and_the_span_tried_again(folder: Path) -> None:
    path = make_video(folder / "again.mp4", options=("-c:v", "libx264"))
    decoder = Decoder(DecodeLimits())
    with open(path, "rb") as file:
        before = decoder.decode(file, start_seconds=0, end_seconds=None, fps=5, sizes=((96, 96),))
        os.kill(decoder.child_pid() or 0, signal.SIGKILL)
        after = decoder.decode(file, start_seconds=0, end_seconds=None, fps=5, sizes=((96, 96),))
    decoder.close()
    np.testing.assert_array_equal(before.frames, after.frames)
    assert (before.attempts, after.attempts) == (1, 2)


@pytest.mark.slow
def test_too_much_cpu_ends_the_span_with_its_class(folder: Path) -> None:
    path = make_video(folder / "long.ts", source="testsrc2=size=160x120:rate=60", seconds=12)
    decoder = Decoder(DecodeLimits(cpu_seconds=1, attempts=1))
    with open(path, "rb") as file:
        decoded = decoder.decode(file, start_seconds=0, end_seconds=None, fps=60, sizes=((1024, 1024),))
    decoder.close()
    assert decoded.error_class == "cpu_limit"


@pytest.mark.slow
def test_no_child_outlives_its_parent(folder: Path) -> None:
    path = make_video(folder / "orphan.mp4")
    program = (
        "import sys, time\n"
        "from pipelines.config import DecodeLimits\n"
        "from pipelines.decoding.decode import Decoder\n"
        "decoder = Decoder(DecodeLimits())\n"
        "decoder.probe(open(sys.argv[1], 'rb'))\n"
        "print(decoder.child_pid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")
