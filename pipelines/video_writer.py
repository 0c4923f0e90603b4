"""Frames to an mp4 file that a browser plays: the one place that encodes video (PyAV).

H.264 where PyAV's build has an encoder for it, MPEG-4 part 2 elsewhere. The file is encoded in memory and put
in its place whole. Reading video is `decode`'s matter.
"""

import io
from fractions import Fraction
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

from infra import storage

_QUALITY: dict[str, dict[str, str]] = {"libx264": {"crf": "14", "preset": "slow"}, "mpeg4": {"qscale": "2"}}


def write_video(uri: str, frames: NDArray[np.uint8], *, fps: float) -> None:
    """Puts frames (T, H, W, 3), of even height and width, at `uri`, complete or absent."""
    storage.write(uri, encode_video(frames, fps=fps))


def encode_video(frames: NDArray[np.uint8], *, fps: float) -> bytes:
    """The bytes of an mp4 file that shows frames (T, H, W, 3); the same bytes for the same frames."""
    num_frames, height, width, channels = frames.shape
    assert num_frames and channels == 3 and height % 2 == width % 2 == 0, f"frames are {frames.shape}"
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        codec = next(name for name in _QUALITY if name in av.codecs_available)
        rate = Fraction(fps).limit_denominator(1001)
        stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=_QUALITY[codec]))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
