"""Whether a file ends where its container says that it does: a cut is told by structure, not by pictures."""

import os
from collections.abc import Callable
from typing import BinaryIO

ENDS_WITHIN = 1 << 16
"""Bytes at the end of a file in which its last page or chunk begins."""
BOX_HEADER, LONG_BOX_HEADER = 8, 16
LETTERS = {*range(0x20, 0x7F), 0xA9}
"""Of the names of boxes."""
SIDX_REFERENCE, SIDX_LENGTH = 12, (1 << 31) - 1
"""Bytes of an entry, and the bits of its first four that are a length."""
TAG_HEADER = 11
"""Bytes of an FLV tag before its data."""
OGG_HEADER, OGG_LAST_PAGE = 27, 4
IVF_FRAME_HEADER = 12
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
START_CODE, PACK, PROGRAM_END = b"\0\0\1", b"\0\0\1\xba", b"\0\0\1\xb9"
JPEG_END = b"\xff\xd9"
PNG_END = 8
Y4M_FRAME = b"FRAME\n"
Y4M_SAMPLES = {b"420": (2, 2), b"411": (4, 1), b"422": (2, 1), b"444": (1, 1)}
"""Pixels across and down that share a sample of either chroma."""
DV_FRAMES = (120_000, 144_000)
"""Bytes of a frame at 60 and at 50 fields a second; the better formats have multiples of it."""
PES_HEADER, MPEG1_PACK_HEADER, MPEG2_PACK_HEADER = 6, 12, 14


def is_cut_off(path: str, container: str) -> bool | None:
    """None where the container has no end to tell by."""
    check = CHECKS.get(container)
    if check is None:
        return None
    with open(path, "rb") as file:
        return check(file, os.fstat(file.fileno()).st_size)


def _mp4(file: BinaryIO, size: int) -> bool | None:
    """Boxes follow each other up to the end of the file, and none speaks of others that are not there: an
    index of fragments (`sidx`), or the head of one (`moof`)."""
    position, indexed, name = 0, 0, b""
    while position + BOX_HEADER <= size:
        file.seek(position)
        head = file.read(LONG_BOX_HEADER)
        name = head[4:8]
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            return None  # a box that goes on to the end, wherever that is
        if length < BOX_HEADER or not all(letter in LETTERS for letter in name):
            return None  # no box: something else was written behind
        position += length
        if name == b"sidx":
            file.seek(position - length + BOX_HEADER)
            indexed = max(
                indexed, position + _indexed_bytes(file.read(min(length - BOX_HEADER, ENDS_WITHIN)))
            )
    return max(position, indexed) > size or name == b"moof"


def _indexed_bytes(sidx: bytes) -> int:
    """Behind the index of fragments that this is, how far they go; of the box without its header."""
    is_long, references = sidx[:1] != b"\0", sidx[32:] if sidx[:1] != b"\0" else sidx[24:]
    first = int.from_bytes(sidx[20:28] if is_long else sidx[16:20], "big")
    lengths = (
        references[at : at + 4] for at in range(0, len(references) - SIDX_REFERENCE + 1, SIDX_REFERENCE)
    )
    return first + sum(int.from_bytes(length, "big") & SIDX_LENGTH for length in lengths)


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


def _ivf(file: BinaryIO, size: int) -> bool | None:
    """Frames follow each other up to the end; how many there should be few writers say."""
    file.seek(0)
    position = int.from_bytes(file.read(8)[6:], "little")
    while position + IVF_FRAME_HEADER <= size:
        file.seek(position)
        position += IVF_FRAME_HEADER + int.from_bytes(file.read(4), "little")
    return position != size


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


def _y4m(file: BinaryIO, size: int) -> bool | None:
    """After a line of text, frames of one length."""
    file.seek(0)
    line, _, _ = file.read(1 << 12).partition(b"\n")
    frame = _y4m_bytes({field[:1]: field[1:] for field in line.split()[1:]})
    if frame is None:
        return None
    whole, rest = divmod(size - len(line) - 1, len(Y4M_FRAME) + frame)
    file.seek(size - rest - len(Y4M_FRAME) - frame)
    is_regular = whole > 0 and file.read(len(Y4M_FRAME)) == Y4M_FRAME
    return rest != 0 if is_regular else None


def _y4m_bytes(fields: dict[bytes, bytes]) -> int | None:
    """Of a frame with 8 bits a sample; None for others."""
    colours = fields.get(b"C", b"420jpeg")
    shared = Y4M_SAMPLES.get(colours.removesuffix(b"jpeg").removesuffix(b"mpeg2").removesuffix(b"paldv"))
    try:
        width, height = int(fields[b"W"]), int(fields[b"H"])
    except (KeyError, ValueError):
        return None
    if colours == b"mono":
        return width * height
    return None if shared is None else width * height + 2 * (-(-width // shared[0]) * -(-height // shared[1]))


def _dv(file: BinaryIO, size: int) -> bool | None:
    """Frames of one length, which the fourth byte tells."""
    file.seek(0)
    head = file.read(4)
    return size % DV_FRAMES[head[3] >> 7] != 0 if len(head) == 4 else True


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
    "ivf": _ivf,
    "ogg": _ogg,
    "mpegts": _mpegts,
    "mpeg": _mpeg,
    "yuv4mpegpipe": _y4m,
    "dv": _dv,
    "gif": _gif,
    "png_pipe": _png,
    "apng": _png,
    "jpeg_pipe": _jpeg,
}
"""By PyAV's name of the demuxer."""
