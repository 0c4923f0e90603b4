"""Frames to a PNG, with nothing but zlib: a training machine may have no imaging library."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
GAP_PIXELS = 2


def film_rows(rows: Sequence[Frames]) -> bytes:
    """A PNG with one row for each film (T, H, W, 3), frames side by side; a shorter film ends in white."""
    longest = max(len(film) for film in rows)
    return png(np.concatenate([_row(film, longest) for film in rows]))


def png(pixels: Frames) -> bytes:
    """An image (H, W, 3) as a PNG file (ISO/IEC 15948): a header, one block of filtered rows, an end."""
    height, width, _ = pixels.shape
    unfiltered = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(unfiltered.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _row(film: Frames, num_frames: int) -> Frames:
    blank = np.full_like(film[0], 255)
    frames = [*film, *[blank] * (num_frames - len(film))]
    padded = [
        np.pad(frame, ((0, GAP_PIXELS), (0, GAP_PIXELS), (0, 0)), constant_values=255) for frame in frames
    ]
    return np.concatenate(padded, axis=1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
