"""Whether a file ends where its container says that it does: a cut is told by structure, not by pictures."""

import os
from collections.abc import Callable
from typing import BinaryIO

ENDS_WITHIN = 1 << 16
"""Bytes at the end of a file in which its last page or chunk begins."""
BOX_HEADER, LONG_BOX_HEADER = 8, 16
TAG_HEADER = 11
"""Bytes of an FLV tag before its data."""
OGG_LAST_PAGE = 4
UNKNOWN_EBML_SIZE = 0xFF
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_cut_off(path: str, container: str) -> bool | None:
    """None where the container has no end to tell by."""
    check = CHECKS.get(container)
    if check is None:
        return None
    with open(path, "rb") as file:
        return check(file, os.fstat(file.fileno()).st_size)


def _mp4(file: BinaryIO, size: int) -> bool | None:
    """Boxes follow each other up to the end of the file."""
    position = 0
    while position + BOX_HEADER <= size:
        file.seek(position)
        head = file.read(LONG_BOX_HEADER)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            return None  # a box that goes on to the end, wherever that is
        if length < BOX_HEADER:
            return None  # no box: something else was written behind
        position += length
    return position > size


def _matroska(file: BinaryIO, size: int) -> bool | None:
    """The segment ends inside the file; one of unknown size, as a live recording has, tells nothing."""
    position = 0
    while position + len(SEGMENT) < size:
        file.seek(position)
        head = file.read(16)
        length, length_bytes = _ebml_size(head[4:])
        if length is None or head[:4] not in (EBML, SEGMENT):
            return None
        position += 4 + length_bytes + length
        if head[:4] == SEGMENT:
            return position > size
    return None


def _ebml_size(data: bytes) -> tuple[int | None, int]:
    """A number whose leading zero bits tell its length, and that length in bytes."""
    num_bytes = 9 - data[0].bit_length() if data and data[0] else 1
    value = int.from_bytes(data[:num_bytes], "big") & ((1 << 7 * num_bytes) - 1)
    is_unknown = value == (1 << 7 * num_bytes) - 1
    return (None if is_unknown else value), num_bytes


def _riff(file: BinaryIO, size: int) -> bool | None:
    """RIFF chunks follow each other up to the end; an AVI beyond a gigabyte has several."""
    position = 0
    while position + BOX_HEADER <= size:
        file.seek(position)
        head = file.read(BOX_HEADER)
        length = int.from_bytes(head[4:], "little")
        if head[:4] not in (b"RIFF", b"LIST", b"JUNK", b"idx1") or length == 0:
            return None if position == 0 else False
        position += BOX_HEADER + length + length % 2
    return position - size > 1  # writers forget the last byte of padding


def _flv(file: BinaryIO, size: int) -> bool | None:
    """The last four bytes are the length of the tag before them."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    if not TAG_HEADER <= length <= size - 4:
        return True
    file.seek(size - 4 - length)
    return int.from_bytes(file.read(4)[1:], "big") != length - TAG_HEADER


def _ogg(file: BinaryIO, size: int) -> bool | None:
    """The last page says that it is the last."""
    end = _end(file, size)
    page = end.rfind(b"OggS")
    return page < 0 or page + 5 >= len(end) or not end[page + 5] & OGG_LAST_PAGE


def _mpegts(file: BinaryIO, size: int) -> bool | None:
    """Packets of 188 bytes, or of 192 and 204 with what Blu-ray and broadcasts add."""
    file.seek(0)
    head = file.read(205)
    for length, sync in ((188, 0), (192, 4), (204, 0)):
        if head[sync : sync + 1] == b"G" and head[sync + length : sync + length + 1] == b"G":
            return size % length != 0
    return None


def _gif(file: BinaryIO, size: int) -> bool | None:
    return not _end(file, size).rstrip(b"\0").endswith(b";")


def _png(file: BinaryIO, size: int) -> bool | None:
    return b"IEND" not in _end(file, size)


def _end(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - ENDS_WITHIN))
    return file.read()


CHECKS: dict[str, Callable[[BinaryIO, int], bool | None]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4,
    "matroska,webm": _matroska,
    "avi": _riff,
    "webp_pipe": _riff,
    "flv": _flv,
    "ogg": _ogg,
    "mpegts": _mpegts,
    "gif": _gif,
    "png_pipe": _png,
    "apng": _png,
}
"""By PyAV's name of the demuxer."""
