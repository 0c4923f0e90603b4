"""Hundreds of odd files: every format that is promised in many shapes, broken ones, and files that are no
videos, from whatever is installed here."""

import os
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.faults.corpus import cut, flip_bits
from tests.media import ffmpeg, make_bad_files, make_sound_with_cover

TINY = "testsrc2=size={size}:rate={rate}"
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none")
X264 = ("-c:v", "libx264", "-preset", "ultrafast")
VPX = ("-deadline", "realtime", "-cpu-used", "8")
CODERS = {
    "h264": (("mp4", "mkv", "mov", "avi", "ts", "flv", "m4v"), X264),
    "h264-open": (("mp4", "mkv"), ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=10")),
    "hevc": (("mp4", "mkv", "ts", "mov"), X265),
    "vp8": (("webm", "mkv"), ("-c:v", "libvpx", *VPX)),
    "vp9": (("webm", "mkv", "mp4"), ("-c:v", "libvpx-vp9", *VPX)),
    "av1": (("mkv", "mp4", "webm"), ("-c:v", "libsvtav1", "-preset", "11", "-svtav1-params", "lp=1")),
    "theora": (("ogv", "ogg", "mkv"), ("-c:v", "libtheora")),
    "mpeg1": (("mpg", "mpeg"), ("-c:v", "mpeg1video")),
    "mpeg2": (("mpg", "ts", "m2ts", "mkv", "m2v", "mp4"), ("-c:v", "mpeg2video")),
    "mpeg4": (("avi", "mp4", "mkv", "3gp"), ("-c:v", "mpeg4", "-bf", "2")),
    "mjpeg": (("avi", "mov", "mkv", "mjpeg"), ("-c:v", "mjpeg")),
    "wmv": (("wmv", "avi"), ("-c:v", "wmv2")),
    "flv": (("flv", "avi"), ("-c:v", "flv")),
    "gif": (("gif",), ()),
    "prores": (("mov",), ("-c:v", "prores_ks")),
    "ffv1": (("mkv", "avi"), ("-c:v", "ffv1")),
    "webp": (
        ("webp",),
        (
            "-c:v",
            "libwebp_anim",
        ),
    ),
}
"""Coder to the containers it goes into, and its options."""
SHAPES = {
    "plain": ("160x120", 25, ()),
    "wide": ("640x64", 25, ()),
    "high": ("64x480", 25, ()),
    "odd": ("158x122", 25, ("-vf", "crop=155:119")),
    "tiny": ("16x16", 10, ()),
    "10bit": ("160x120", 25, ("-pix_fmt", "yuv420p10le")),
    "444": ("160x120", 25, ("-pix_fmt", "yuv444p")),
    "anamorphic": ("160x120", 25, ("-vf", "setsar=16/11")),
    "interlaced": ("160x120", 50, ("-vf", "interlace")),
    "uneven": ("160x120", 50, ("-vf", "select='lt(t,0.5)+not(mod(n,9))'", "-fps_mode", "vfr")),
    "slow": ("160x120", 1, ()),
    "late": ("160x120", 25, ("-output_ts_offset", "700")),
    "one": ("160x120", 25, ("-frames:v", "1")),
    "loud": ("160x120", 25, ("-f", "lavfi", "-i", "sine", "-map", "0", "-map", "1", "-shortest")),
}
"""What a video may be like: its size, its rate, and the options that make it so."""
STILLS = ("png", "jpg", "webp", "bmp", "tif", "gif")
PICTURES = (".png", ".gif", ".jpg")
MOST_BYTES = 4 << 20
NO_VIDEOS = (".py", ".so", ".json", ".txt", ".html", ".js", ".parquet", ".npz", ".ttf", *PICTURES)


def gather(folder: Path, *, seed: str, share: float = 1.0) -> None:
    """Fills a new folder; `share` of what there could be, chosen by the seed."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    for name, options in _videos():
        if rng.random() < share:
            _try_to_make(folder / name, options)
    still = ("-f", "lavfi", "-i", TINY.format(size="99x77", rate=1), "-frames:v", "1")
    for suffix in STILLS:
        _try_to_make(folder / f"still.{suffix}", still)
    _special(folder)
    _broken(folder, rng, share)
    _foreign(folder, rng, share)
    make_bad_files(folder)


def _videos() -> Iterator[tuple[str, tuple[str, ...]]]:
    for coder, (suffixes, coding) in CODERS.items():
        for number, suffix in enumerate(suffixes):
            for shape, (size, rate, options) in SHAPES.items():
                if number == 0 or shape in ("plain", "late", "one"):
                    source = ("-f", "lavfi", "-t", "1.2", "-i", TINY.format(size=size, rate=rate))
                    extra, flags = (options[:8], options[8:]) if shape == "loud" else ((), options)
                    yield f"{coder}-{shape}.{suffix}", (*source, *extra, *coding, *flags)


def _try_to_make(path: Path, options: tuple[str, ...]) -> None:
    """Not every coder takes every pixel format or size."""
    try:
        ffmpeg(*options, str(path))
    except subprocess.CalledProcessError:
        path.unlink(missing_ok=True)


def _special(folder: Path) -> None:
    """What takes more than one step."""
    base = folder / "h264-plain.mp4"
    if not base.exists():
        _try_to_make(base, ("-f", "lavfi", "-t", "1.2", "-i", TINY.format(size="160x120", rate=25), *X264))
    for turn in (90, 180, 270):
        _try_to_make(
            folder / f"turned-{turn}.mp4", ("-display_rotation", str(turn), "-i", str(base), "-c", "copy")
        )
    _try_to_make(folder / "two-streams.mkv", ("-i", str(base), "-map", "0:v", "-map", "0:v", "-c", "copy"))
    _try_to_make(folder / "raw.h264", ("-i", str(base), "-c", "copy", "-bsf:v", "h264_mp4toannexb"))
    _try_to_make(folder / "fragments.mp4", ("-i", str(base), "-c", "copy", "-movflags", "+frag_keyframe"))
    late = ("-f", "lavfi", "-i", "sine=duration=20", "-itsoffset", "15", "-i", str(base))
    for suffix in ("mkv", "ts", "mp4"):
        _try_to_make(folder / f"late-picture.{suffix}", (*late, "-map", "0", "-map", "1", "-c:v", "copy"))
    make_sound_with_cover(folder / "cover.mp3")
    (folder / "behind.mp4").write_bytes(base.read_bytes() + bytes(5000))
    (folder / "twice.mp4").write_bytes(base.read_bytes() * 2)
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "a folder.mp4").mkdir()
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(base.read_bytes())
    (folder / "odd \u00fc\u4e2d [name] #1 %20.mp4").write_bytes(base.read_bytes())


def _broken(folder: Path, rng: random.Random, share: float) -> None:
    whole = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    for path in rng.sample(whole, int(len(whole) * 0.6 * share)):
        data = path.read_bytes()
        damaged = cut(data, rng.random()) if rng.random() < 0.5 else flip_bits(data, path.name, count=20)
        (folder / f"broken-{path.name}").write_bytes(damaged)


def _foreign(folder: Path, rng: random.Random, share: float) -> None:
    """Files of installed packages, under the names of videos; and the pictures among them as they are."""
    found = sorted(
        path
        for path in Path(sysconfig.get_paths()["purelib"]).rglob("*")
        if path.suffix in NO_VIDEOS and path.is_file() and path.stat().st_size < MOST_BYTES
    )
    pictures = [path for path in found if path.suffix in PICTURES]
    some = rng.sample(found, int(120 * share)) + rng.sample(pictures, min(len(pictures), int(30 * share)))
    for number, path in enumerate(some):
        name = (
            path.name if path.suffix in PICTURES else f"{path.name}.{rng.choice(('mp4', 'avi', 'ts', 'mpg'))}"
        )
        shutil.copy(path, folder / f"found-{number}-{name}")
