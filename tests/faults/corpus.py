"""Whole videos in every format that is promised, and what can happen to a file on its way."""

import random
from pathlib import Path

from tests.media import make_video

SECONDS = 4
GOP = ("-g", "10")
FAST = ("-deadline", "realtime", "-cpu-used", "8")
FORMATS = {
    "h264.mp4": ("-c:v", "libx264", "-bf", "2", *GOP, "-movflags", "+faststart"),
    "h264-index-last.mp4": ("-c:v", "libx264", *GOP),
    "h264-fragmented.mp4": ("-c:v", "libx264", *GOP, "-movflags", "+frag_keyframe+empty_moov"),
    "h264.ts": ("-c:v", "libx264", *GOP),
    "h264-10bit.mkv": ("-c:v", "libx264", "-pix_fmt", "yuv420p10le", *GOP),
    "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none", *GOP, "-movflags", "+faststart"),
    "hevc-10bit.mkv": ("-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p10le"),
    "vp8.webm": ("-c:v", "libvpx", *FAST, *GOP),
    "vp9.webm": ("-c:v", "libvpx-vp9", *FAST, *GOP),
    "av1.mkv": ("-c:v", "libsvtav1", "-preset", "11", *GOP),
    "theora.ogv": ("-c:v", "libtheora", *GOP),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-q:v", "4", *GOP),
    "mpeg4.avi": ("-c:v", "mpeg4", "-q:v", "4", *GOP),
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "4"),
    "flv.flv": ("-c:v", "flv", "-q:v", "4", *GOP),
    "moving.gif": (),
}
INDEX_LAST = ("h264-index-last.mp4",)
"""Cut off, these give nothing: nobody knows where their frames are."""


def make_whole(folder: Path, name: str) -> Path:
    """One of FORMATS, four seconds long."""
    path = folder / name
    return path if path.exists() else make_video(path, seconds=SECONDS, options=FORMATS[name])


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flip_bits(data: bytes, seed: str, *, count: int) -> bytes:
    """`count` bits flipped, anywhere in the file."""
    rng, flipped = random.Random(seed), bytearray(data)
    for _ in range(count):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def damage_pictures(path: Path, seed: str, *, count: int) -> None:
    """Flips bits between the file's first and last tenth, where no container keeps its index."""
    data = path.read_bytes()
    tenth = len(data) // 10
    middle = flip_bits(data[tenth : 9 * tenth], seed, count=count)
    path.write_bytes(data[:tenth] + middle + data[9 * tenth :])
