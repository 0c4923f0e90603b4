"""Real media files to test on, made by the ffmpeg inside imageio-ffmpeg: good ones and bad ones."""

import random
import subprocess
from pathlib import Path

import imageio_ffmpeg

MOVING = "testsrc2=size=160x120:rate=25"
"""ffmpeg's test picture with moving parts and a running clock."""


def ffmpeg(*args: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *args]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def make_video(
    path: Path, *, seconds: float = 3, source: str = MOVING, options: tuple[str, ...] = ()
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg("-f", "lavfi", "-i", source, "-t", str(seconds), *options, str(path))
    return path


def make_still(path: Path) -> Path:
    ffmpeg("-f", "lavfi", "-i", MOVING, "-frames:v", "1", str(path))
    return path


def make_sound_with_cover(path: Path) -> Path:
    """Sound alone, and a picture that is no video: the cover of an album."""
    cover = make_still(path.with_suffix(".png"))
    sound = ("-f", "lavfi", "-i", "sine", "-i", str(cover), "-map", "0", "-map", "1")
    ffmpeg(*sound, "-c:v", "png", "-disposition:v", "attached_pic", "-t", "1", str(path))
    cover.unlink()
    return path


def make_video_behind_sound(path: Path, *, options: tuple[str, ...]) -> Path:
    """A transport stream that is sound alone for longer than demuxers look; then the video begins."""
    sound, both = path.with_suffix(".sound.ts"), path.with_suffix(".both.ts")
    tone = ("-f", "lavfi", "-i", "sine", "-c:a", "mp2", "-b:a", "384k")
    ffmpeg(*tone, "-t", "150", str(sound))
    later = ("-output_ts_offset", "150", "-mpegts_start_pid", "512")
    ffmpeg("-f", "lavfi", "-i", MOVING, *tone, "-t", "3", *options, *later, str(both))
    path.write_bytes(sound.read_bytes() + both.read_bytes())
    sound.unlink()
    both.unlink()
    return path


def make_video_behind_a_broken_stream(path: Path, *, options: tuple[str, ...]) -> Path:
    """Two video streams, and of the first one nothing can be decoded."""
    whole = make_video(path.with_suffix(".whole.mkv"), options=options)
    both = ("-i", str(whole), "-map", "0:v", "-map", "0:v", "-c", "copy")
    ffmpeg(*both, "-bsf:v:0", "noise=amount=1", str(path))
    whole.unlink()
    return path


def make_bad_files(folder: Path) -> dict[str, str]:
    """Files that cannot be decoded: name to the error class that each must get."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.mp4").write_text("this is a shopping list\n" * 50)
    (folder / "empty.mp4").write_bytes(b"")
    ffmpeg("-f", "lavfi", "-i", "sine", "-t", "1", str(folder / "sound.mp4"))
    whole = make_video(folder / "whole.mp4")
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()
    return {"text.mp4": "not_media", "empty.mp4": "empty", "sound.mp4": "no_video", "cut.mp4": "truncated"}


def make_damaged_files(folder: Path) -> dict[str, str]:
    """Videos of which a part can be decoded: name to the error class that each must get beside its clips."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = make_video(
        folder / "whole.mp4", seconds=6, options=("-c:v", "libx264", "-movflags", "+faststart")
    )
    (folder / "cut-behind-its-index.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()
    scratched = make_video(folder / "scratched.mpg", seconds=6, options=("-c:v", "mpeg2video", "-g", "10"))
    data, scratch = bytearray(scratched.read_bytes()), random.Random(0)
    for start in range(len(data) // 3, 2 * len(data) // 3, 1500):
        data[start : start + 24] = scratch.randbytes(24)
    scratched.write_bytes(data)
    return {"cut-behind-its-index.mp4": "truncated", "scratched.mpg": "corrupt"}
