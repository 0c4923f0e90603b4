"""The loop of the child: one request after another, about one open file at a time, until it is killed.

decord decodes what it shows as PyAV does, damaged or not; PyAV decodes everything else, and each span of
which it confirms what decord complains of. Which one served is in the answer; nothing else depends on that.
The last file stays open for the next span of it.
"""

import contextlib
import os
import socket
import sys
from typing import Any

import av
import decord
import numpy as np

from pipelines.decoding.child import limits, protocol, verdict, with_decord, with_pyav
from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.protocol import DiskError, RefusedError
from pipelines.decoding.child.sampling import Sampled
from pipelines.decoding.child.shapes import Shape
from pipelines.decoding.child.verdict import Fault
from pipelines.decoding.child.video import Video


def main() -> None:
    parent, memory_mb, complaints = (int(argument) for argument in sys.argv[1:])
    limits.set_for_good(parent, memory_mb)
    decord.logging.set_level(decord.logging.ERROR)
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.ERROR)
    child = DecodingChild(Complaints(complaints))
    with socket.socket(fileno=0) as channel:
        channel.sendall(protocol.READY)
        while (received := protocol.receive_request(channel)) is not None:
            child.answer(channel, *received)


READ_AT_ONCE = 1 << 20
TOO_LARGE = "decoding needs more memory than it may use (--limits.memory-mb)"
DOUBTFUL = ("corrupt", "truncated", "not_media")
"""What a file seems to be, too, whose disk fails: demuxers take that for its end."""


class OpenFile:
    """A video, and decord's reader of it for as long as that behaves."""

    def __init__(self, descriptor: int, complaints: Complaints) -> None:
        self.identity = _identity(descriptor)
        self._complaints = complaints
        self._descriptor = os.dup(descriptor)
        self._shape: Shape | None = None
        self._reader: with_decord.DecordReader | None = None
        try:
            self.video = Video(f"/proc/self/fd/{self._descriptor}", complaints)
        except BaseException:
            os.close(self._descriptor)
            raise

    def decode(self, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """Frames shown at start + j / fps inside [start, end), (N, H, W, 3) uint8, H x W the one of `sizes`
        that is nearest in aspect ratio; `end` may be open (None)."""
        shape = Shape.of(self.video.pixel_aspect, self.video.first_frame, request["sizes"])
        if shape != self._shape:
            self._shape, self._reader = shape, with_decord.reader_for(self.video, shape)
        sampled, fault = self._sampled(shape, request)
        frames = sampled.frames(shape.crop)
        error_class, error = fault or (None, None)
        answer = {
            "decoder": sampled.decoder,
            "shape": list(frames.shape),
            "width": shape.source_width,
            "height": shape.source_height,
            "source_seconds": self.video.duration_seconds(),
            "indices": sampled.indices,
            "num_source_frames": sampled.num_source_frames,
            "error_class": error_class,
            "error": error,
        }
        return answer, frames

    def _sampled(self, shape: Shape, request: dict[str, Any]) -> tuple[Sampled, Fault | None]:
        """Where decord complained, PyAV says of what: where it shows the same and finds no fault, it was of
        what lies behind the span, which decord trips over sooner or later, as it comes."""
        served = with_decord.sample(self._reader, request, self._complaints) if self._reader else None
        if served is None or self._complaints.count():
            self._forget_reader()
            judge = with_pyav.sample(self.video, shape, request, self._complaints)
            fault = verdict.fault(self.video, judge, request)
            if served is None or fault or not served.shows_the_same(judge):
                return judge, fault
        return served, verdict.fault(self.video, served, request)

    def _forget_reader(self) -> None:
        """After a complaint nothing is known of decord's state: the next span gets a new reader."""
        if self._reader is not None:
            self._reader = self._shape = None

    def close(self) -> None:
        self._reader = None
        os.close(self._descriptor)


class DecodingChild:
    """Answers requests; keeps the file of the last one."""

    def __init__(self, complaints: Complaints) -> None:
        self._complaints = complaints
        self._open: OpenFile | None = None
        self._readable: tuple[int, ...] = ()
        """Identity of the file that was last read to its end."""

    def answer(self, channel: socket.socket, request: dict[str, Any], descriptor: int) -> None:
        started = limits.cpu_seconds()
        limits.set_cpu(request["cpu_seconds"])
        with _closing(descriptor):
            try:
                answer, frames = self._explained(request, descriptor)
                if answer.get("error_class") in DOUBTFUL:
                    self._check_disk(descriptor)
            except DiskError as error:
                answer, frames = {"disk_error": [error.number, str(error)]}, np.zeros(0, np.uint8)
        answer["cpu_seconds"] = limits.cpu_seconds() - started
        protocol.send_answer(channel, answer, frames)

    def _explained(self, request: dict[str, Any], descriptor: int) -> tuple[dict[str, Any], np.ndarray]:
        """What was asked for, or the class of what is wrong with the file."""
        try:
            return self._do(request, descriptor)
        except RefusedError as refusal:
            answer = {"error_class": refusal.error_class, "error": str(refusal)}
        except MemoryError:
            answer = {"error_class": "memory_limit", "error": TOO_LARGE}
        except av.error.FFmpegError as error:
            answer = {"error_class": "corrupt", "error": f"the video stream cannot be read: {error.strerror}"}
        return answer, np.zeros(0, np.uint8)

    def _check_disk(self, descriptor: int) -> None:
        """Reads the whole file, once. Raises DiskError."""
        if self._readable == (identity := _identity(descriptor)):
            return
        position = 0
        try:
            while part := os.pread(descriptor, READ_AT_ONCE, position):
                position += len(part)
        except OSError as error:
            raise DiskError(error.errno, f"{error.strerror} at byte {position}") from None
        self._readable = identity

    def _do(self, request: dict[str, Any], descriptor: int) -> tuple[dict[str, Any], np.ndarray]:
        file = self._file(descriptor)
        if request["verb"] == "decode":
            return file.decode(request)
        return {"duration_seconds": file.video.duration_seconds()}, np.zeros(0, np.uint8)

    def _file(self, descriptor: int) -> OpenFile:
        if self._open is None or self._open.identity != _identity(descriptor):
            if self._open is not None:
                self._open.close()
                self._open = None
            self._open = OpenFile(descriptor, self._complaints)
        return self._open


def _identity(descriptor: int) -> tuple[int, ...]:
    """Of what is in the file now."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _closing(descriptor: int) -> Any:
    try:
        yield
    finally:
        os.close(descriptor)
