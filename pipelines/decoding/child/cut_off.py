"""Whether a file ends where its container says that it does: a cut is told by structure, not by pictures."""

import os
from collections.abc import Callable
from typing import BinaryIO

ENDS_WITHIN = 1 << 16
"""Bytes at the end of a file in which its last page or chunk begins."""
BOX_HEADER, LONG_BOX_HEADER = 8, 16
TAG_HEADER = 11
"""Bytes of an FLV tag before its data."""
OGG_HEADER, OGG_LAST_PAGE = 27, 4
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
START_CODE, PACK, PROGRAM_END = b"\0\0\1", b"\0\0\1\xba", b"\0\0\1\xb9"
JPEG_END = b"\xff\xd9"
PNG_END = 8
PES_HEADER, MPEG1_PACK_HEADER, MPEG2_PACK_HEADER = 6, 12, 14


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
    """The last page is whole, and says that it is the last."""
    end = _end(file, size)
    page = end[max(0, end.rfind(b"OggS")) :]
    if len(page) < OGG_HEADER or not page.startswith(b"OggS") or not page[5] & OGG_LAST_PAGE:
        return True
    segments = page[OGG_HEADER : OGG_HEADER + page[OGG_HEADER - 1]]
    return len(page) < OGG_HEADER + page[OGG_HEADER - 1] + sum(segments)


def _mpegts(file: BinaryIO, size: int) -> bool | None:
    """Packets of 188 bytes, or of 192 and 204 with what Blu-ray and broadcasts add."""
    file.seek(0)
    head = file.read(205)
    for length, sync in ((188, 0), (192, 4), (204, 0)):
        if head[sync : sync + 1] == b"G" and head[sync + length : sync + length + 1] == b"G":
            return size % length != 0
    return None


def _mpeg(file: BinaryIO, size: int) -> bool | None:
    """Packs and packets follow each other up to the end; few writers say that it is the end."""
    end = _end(file, size)
    position = end.find(PACK)
    while 0 <= position < len(end):
        code = end[position : position + 4]
        if code == PROGRAM_END:
            return False
        if code[:3] != START_CODE[: len(code)]:
            return None
        position += _mpeg_bytes(end[position : position + MPEG2_PACK_HEADER])
    return None if position < 0 else position > len(end)


def _mpeg_bytes(head: bytes) -> int:
    """Of the pack header or the packet that begins so; where that is cut, more than there are."""
    if not head.startswith(PACK):
        return PES_HEADER + int.from_bytes(head[4:6], "big")
    if len(head) < MPEG2_PACK_HEADER:
        return MPEG2_PACK_HEADER
    return MPEG2_PACK_HEADER + (head[13] & 7) if head[4] >> 6 == 1 else MPEG1_PACK_HEADER


def _gif(file: BinaryIO, size: int) -> bool | None:
    return not _end(file, size).rstrip(b"\0").endswith(b";")


def _png(file: BinaryIO, size: int) -> bool | None:
    """The last chunk is there, with its four bytes of checksum."""
    return not 0 <= _end(file, size).rfind(b"IEND") <= min(size, ENDS_WITHIN) - PNG_END


def _jpeg(file: BinaryIO, size: int) -> bool | None:
    return JPEG_END not in _end(file, size)


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
    "mpeg": _mpeg,
    "gif": _gif,
    "png_pipe": _png,
    "apng": _png,
    "jpeg_pipe": _jpeg,
}
"""By PyAV's name of the demuxer."""
