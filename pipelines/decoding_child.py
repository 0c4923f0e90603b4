"""The decoding child: a plain program that opens one video at a time and may be killed at any moment.

It is started by `pipelines.decode`, imports nothing of the house, and has no credentials. It takes one JSON
request at a time on the socket that is its standard input, the video as an open file beside it, and answers
with JSON followed by the raw frames. Limits on CPU, memory and files are its own, set before the first byte
is read.

decord decodes the containers in which its seeks are exact; PyAV decodes the others (decord is a whole group
of pictures off in MPEG-PS, MPEG-TS and WMV) and what decord refuses with an error. Which one served is in the
answer.
"""

import contextlib
import ctypes
import itertools
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import decord
import numpy as np

PR_SET_PDEATHSIG = 1
READY = b"+"
"""Sent once everything is imported: a child that ends before is the machine's fault, not a file's."""
ANSWER_HEADER = "<QQ"
"""Bytes of the JSON answer and of the frames that follow it."""
DECORD_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif"}
SEEK_MARGIN_SECONDS = 10.0
"""Where PyAV decodes, it starts this long before a span: after a seek without an index, the first group of
pictures may lack its references."""
TIME_TOLERANCE = 0.0005
"""Seconds: containers that store milliseconds round timestamps by as much as half of one."""


class RefusedError(Exception):
    """The file itself is at fault; `error_class` is one of those in `pipelines.decode`."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def main() -> None:
    parent, memory_mb = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    _limit(resource.RLIMIT_AS, memory_mb << 20)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(av.logging.PANIC)
    with socket.socket(fileno=0) as channel:
        channel.sendall(READY)
        while (request := _receive(channel)) is not None:
            _answer(channel, *request)


def _receive(channel: socket.socket) -> tuple[dict[str, Any], int] | None:
    line, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
    if not line:
        return None
    return json.loads(line), descriptors[0]


def _answer(channel: socket.socket, request: dict[str, Any], descriptor: int) -> None:
    started = _cpu_seconds()
    _limit_cpu(request["cpu_seconds"])
    payload = b""
    try:
        if os.fstat(descriptor).st_size == 0:
            raise RefusedError("empty", "the file has no bytes")
        path = f"/proc/self/fd/{descriptor}"
        if request["verb"] == "probe":
            answer = _probe(path)
        else:
            answer, frames = _decode(path, request)
            payload = frames.tobytes()
    except RefusedError as refusal:
        answer = {"error_class": refusal.error_class, "error": str(refusal)}
    except MemoryError:
        answer = {"error_class": "memory_limit", "error": "decoding needs more memory than it may use"}
    except av.error.FFmpegError as error:
        answer = {"error_class": "corrupt", "error": f"the video stream cannot be read: {error.strerror}"}
    finally:
        os.close(descriptor)
    answer["cpu_seconds"] = _cpu_seconds() - started
    line = json.dumps(answer).encode()
    channel.sendall(struct.pack(ANSWER_HEADER, len(line), len(payload)) + line)
    channel.sendall(payload)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _probe(path: str) -> dict[str, Any]:
    with _opened(path) as (_, stream):
        return {"duration_seconds": _duration(stream), "width": stream.width, "height": stream.height}


def _decode(path: str, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Frames shown at start + j / fps inside [start, end), (N, H, W, 3) uint8, H x W the one of `sizes` that
    is nearest in aspect ratio; `end` may be open (None)."""
    with _opened(path) as (container, stream):
        container_format = container.format.name
        shape = Shape.of(stream, request["sizes"])
        duration = _duration(stream)
    sampled = _decode_with_decord(path, shape, request) if container_format in DECORD_CONTAINERS else None
    if sampled is None:
        sampled = _decode_with_pyav(path, shape, request)
    frames = sampled.frames(shape.crop)
    answer = {
        "decoder": sampled.decoder,
        "shape": list(frames.shape),
        "width": shape.source_width,
        "height": shape.source_height,
        "indices": sampled.indices,
        "num_source_frames": sampled.num_source_frames,
        "num_damaged": sampled.num_damaged,
        "last_frame_seconds": sampled.last_frame_seconds,
        "duration_seconds": duration,
    }
    return answer, frames


class Sampled:
    """What a decoder gives of a span: distinct pictures, and which of them each sampling time shows."""

    def __init__(self, decoder: str) -> None:
        self.decoder = decoder
        self.pictures: list[np.ndarray] = []
        """Upright, (H, W, 3) uint8, one side as asked, the other as asked or longer."""
        self.indices: list[int] = []
        self.num_source_frames = 0
        """Frames the decoder saw; of the whole file where it has an index, else up to the end of the span."""
        self.num_damaged = 0
        """Packets that did not decode and pictures that came out corrupt; PyAV tells, decord does not."""
        self.last_frame_seconds = 0.0
        self.last_kept: Any = None

    def frames(self, crop: tuple[int, int]) -> np.ndarray:
        """Cropped around the centre to (height, width), (N, height, width, 3) uint8."""
        height, width = crop
        if not self.indices:
            return np.zeros((0, height, width, 3), np.uint8)
        top, left = (self.pictures[0].shape[0] - height) // 2, (self.pictures[0].shape[1] - width) // 2
        cropped = [picture[top : top + height, left : left + width] for picture in self.pictures]
        return np.stack(cropped)[self.indices]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the upright picture, from square pixels: just large enough to cover `crop`."""

    width: int
    height: int
    quarter_turns: int
    """Counter-clockwise, from the coded picture to the upright one."""
    crop: tuple[int, int]
    """Height and width of what is cut out of its centre."""
    source_width: int
    source_height: int

    @classmethod
    def of(cls, stream: Any, sizes: list[tuple[int, int]]) -> "Shape":
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        width, height = stream.width * (aspect if aspect > 0 else 1), stream.height
        turns = _quarter_turns(stream)
        if turns % 2:
            width, height = height, width
        rows, columns = _nearest_in_aspect(sizes, float(width / height))
        scale = max(Fraction(rows) / height, Fraction(columns) / width)
        covering = (max(columns, round(width * scale)), max(rows, round(height * scale)))
        return cls(*covering, turns, (rows, columns), round(width), round(height))

    def convert(self, frame: Any) -> np.ndarray:
        """One PyAV frame, resized and turned upright, (H, W, 3) uint8."""
        width, height = (self.height, self.width) if self.quarter_turns % 2 else (self.width, self.height)
        return np.rot90(frame.to_ndarray(width=width, height=height, format="rgb24"), self.quarter_turns)


def _nearest_in_aspect(sizes: list[tuple[int, int]], aspect: float) -> tuple[int, int]:
    """The first of `sizes` (height, width) that distorts or crops least: as a ratio, so by the logarithm."""
    rows, columns = min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / aspect)))
    return rows, columns


def _quarter_turns(stream: Any) -> int:
    """Counter-clockwise quarter turns that bring a frame upright, from its display matrix."""
    first = next(_pyav_frames(stream), None)
    return round(first.rotation / 90) % 4 if first is not None else 0


def _decode_with_decord(path: str, shape: Shape, request: dict[str, Any]) -> Sampled | None:
    """None where decord refuses the file with an error. decord turns pictures upright by itself."""
    try:
        reader = decord.VideoReader(path, width=shape.width, height=shape.height, num_threads=1)
        return _sample_with_decord(reader, request) if len(reader) else None
    except (decord.DECORDError, RuntimeError):
        return None


def _sample_with_decord(reader: Any, request: dict[str, Any]) -> Sampled:
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    times = starts - starts[0]
    sampled = Sampled("decord")
    sampled.num_source_frames, sampled.last_frame_seconds = len(times), float(times[-1])
    wanted = list(
        itertools.takewhile(lambda time: time <= times[-1] + TIME_TOLERANCE, _sampling_times(request))
    )
    if not wanted:
        return sampled
    shown = np.searchsorted(times - TIME_TOLERANCE, wanted, side="right") - 1
    unique, inverse = np.unique(shown, return_inverse=True)
    sampled.pictures = list(reader.get_batch(unique.tolist()).asnumpy())
    sampled.indices = inverse.tolist()
    return sampled


def _decode_with_pyav(path: str, shape: Shape, request: dict[str, Any]) -> Sampled:
    """Decodes forward from the key frame before the span, keeping a frame for as long as it is shown."""
    sampled, wanted = Sampled("pyav"), _sampling_times(request)
    time, shown = next(wanted, None), None
    with _opened(path) as (container, stream):
        first = float((stream.start_time or 0) * stream.time_base)
        if request["start"] > SEEK_MARGIN_SECONDS:
            container.seek(
                int((request["start"] - SEEK_MARGIN_SECONDS + first) / stream.time_base), stream=stream
            )
        for frame in _pyav_frames(stream, sampled):
            starts = (frame.time or first) - first
            sampled.num_damaged += frame.is_corrupt and starts >= request["start"]
            while shown is not None and time is not None and time < starts - TIME_TOLERANCE:
                _keep(sampled, shown, shape)
                time = next(wanted, None)
            if time is None:
                break
            shown = frame
            sampled.num_source_frames += 1
            sampled.last_frame_seconds = starts
        while shown is not None and time is not None and time <= sampled.last_frame_seconds + TIME_TOLERANCE:
            _keep(sampled, shown, shape)
            time = next(wanted, None)
    if sampled.num_source_frames == 0 and request["start"] == 0:
        raise RefusedError("corrupt", "not one frame of the video stream can be decoded")
    return sampled


def _keep(sampled: Sampled, frame: Any, shape: Shape) -> None:
    """Adds `frame` at the next sampling time, converting it only the first time it is shown."""
    if sampled.last_kept is not frame:
        sampled.pictures.append(shape.convert(frame))
        sampled.last_kept = frame
    sampled.indices.append(len(sampled.pictures) - 1)


def _sampling_times(request: dict[str, Any]) -> Iterator[float]:
    """start + j / fps, exactly, up to the end of the span."""
    start, fps = (
        Fraction(request["start"]).limit_denominator(10**6),
        Fraction(request["fps"]).limit_denominator(10**6),
    )
    end = None if request["end"] is None else Fraction(request["end"]).limit_denominator(10**6)
    for j in itertools.count():
        time = start + j / fps
        if end is not None and time >= end:
            return
        yield float(time)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. Raises RefusedError where there is none."""
    try:
        container = av.open(path, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from None
    with container:
        streams = [
            s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams or not streams[0].codec_context or not streams[0].width:
            raise RefusedError("no_video", "the file has no video stream")
        streams[0].thread_type = "NONE"
        streams[0].codec_context.thread_count = 1
        yield container, streams[0]


def _unreadable(path: str, error: Exception) -> RefusedError:
    with open(path, "rb") as file:
        head = file.read(1 << 12)
    if head[4:8] == b"ftyp":
        return RefusedError(
            "truncated", "an MP4 file without its index (moov): it was cut off while it was written"
        )
    return RefusedError(
        "not_media", f"no demuxer knows this file: {getattr(error, 'strerror', None) or error}"
    )


def _duration(stream: Any) -> float | None:
    """Seconds that the container promises, or None where it says nothing."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return stream.container.duration / av.time_base if stream.container.duration else None


def _pyav_frames(stream: Any, sampled: Sampled | None = None) -> Iterator[Any]:
    """Frames in the order they are shown; packets that do not decode are counted and passed over, as players
    do."""
    for packet in stream.container.demux(stream):
        if packet.size == 0 and packet.dts is not None:
            continue  # theora repeats a frame with an empty packet, which PyAV refuses
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            if sampled is not None:
                sampled.num_damaged += 1


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _limit_cpu(seconds: float) -> None:
    _limit(resource.RLIMIT_CPU, math.ceil(_cpu_seconds() + seconds))


if __name__ == "__main__":
    main()
