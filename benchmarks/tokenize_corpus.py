"""Half an hour of video in several codecs and sizes, made by ffmpeg: the same on every machine.

All are 16:9, and their rates are multiples of the rate that is sampled, so that those who resize without
cropping, or sample by frame and not by time, come to the same frames. HEVC has closed groups of pictures
without pyramids, VP9 no hidden frames: of the others decord, which most contenders read with, gives wrong
pictures or none.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

SECONDS = 20
VIDEOS_OF_A_KIND = 12


@dataclass(frozen=True, slots=True)
class Kind:
    suffix: str
    size: str
    rate: int
    codec: tuple[str, ...]


X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
SIMPLE = "open-gop=0:b-pyramid=0"
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-x265-params", SIMPLE)
REALTIME = ("-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M")
KINDS = {
    "h264-720p": Kind("mp4", "1280x720", 24, X264),
    "h264-360p": Kind("mp4", "640x360", 24, X264),
    "h264-360p-48": Kind("mkv", "640x360", 48, X264),
    "hevc-540p-simple": Kind("mp4", "960x540", 24, X265),
    "vp9-360p-plain": Kind("webm", "640x360", 24, ("-c:v", "libvpx-vp9", *REALTIME, "-auto-alt-ref", "0")),
    "vp8-360p": Kind("webm", "640x360", 24, ("-c:v", "libvpx", *REALTIME)),
    "mpeg4-360p": Kind("avi", "640x360", 24, ("-c:v", "mpeg4", "-b:v", "1M")),
}


def make(folder: Path, *, videos_of_a_kind: int = VIDEOS_OF_A_KIND) -> list[Path]:
    """The videos, in `folder`; those that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(folder / f"{name}-{n}.{kind.suffix}", kind, n)
              for n in range(videos_of_a_kind) for name, kind in KINDS.items()]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda video: _make(*video), wanted))


def _make(path: Path, kind: Kind, number: int) -> Path:
    if path.exists():
        return path
    picture = f"testsrc2=size={kind.size}:rate={kind.rate},hue=h={50 * number}"
    part = path.with_name(f"part-{path.name}")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", "-f", "lavfi"]
    subprocess.run([*command, "-i", picture, "-t", str(SECONDS), *kind.codec, str(part)], check=True)
    return part.rename(path)
