"""One opened file: which stream is shown, from where its time counts, and which frames it shows."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import av

from pipelines.decoding.child import cut_off
from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.packets import Packets, packets_of
from pipelines.decoding.child.protocol import RefusedError
from pipelines.decoding.child.timeline import Timeline

LONG_PROBE = {"probesize": str(64 << 20), "analyzeduration": str(120_000_000)}
"""Bytes and microseconds in which a stream may turn up late, as behind a prefix of sound alone."""
LEAST_BYTES_A_SECOND, MOST_BYTES_A_SECOND = 250.0, 25e6
"""A promised duration that makes less or more of the file is not believed: the packets are read instead."""
LONGEST_BELIEVED_SECONDS = 6 * 3600.0
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif"}
"""Containers in which a seek leads where it should."""
DECORDS_CODECS = {"h264", "mpeg4", "mjpeg", "gif"}
"""Of others a damaged picture that no decoder complains of need not be the same for both: VP8 shows what
decord's threads leave behind in buffers, in an order of their own, and of HEVC the two libraries differ."""
MOST_SECONDS_A_FRAME = 60.0
"""A timeline with fewer frames than this is a broken one."""
NOTHING_TO_DECODE = ("corrupt", "not one frame of the video stream can be decoded")
NOTHING_BEFORE_THE_CUT = ("truncated", "the file is cut off before its first frame ends")


class Video:
    """A file by its path, and the first of its video streams of which a frame can be decoded.

    Raises RefusedError where there is none.
    """

    def __init__(self, path: str, complaints: Complaints) -> None:
        self.path = path
        self._complaints = complaints
        self._num_bytes = os.stat(path).st_size
        if self._num_bytes == 0:
            raise RefusedError("empty", "the file has no bytes")
        self._options = _options_for(path)
        with _container(path, self._options) as container:
            self.format: str = container.format.name
            self.num_video_streams = len(container.streams.video)
            self.is_cut_off = cut_off.is_cut_off(path, self.format)
            self._index, self.first_frame = _first_frame(container, bool(self.is_cut_off))
            stream = container.streams[self._index]
            self.promised_seconds = _promise(stream)
            self.codec: str = stream.codec_context.codec.canonical_name
            self.pixel_aspect = stream.sample_aspect_ratio
        self.origin_seconds = float(self.first_frame.time or 0.0)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Any, Any]]:
        """The container and the stream, at their beginning."""
        with _container(self.path, self._options) as container:
            yield container, container.streams[self._index]

    @cached_property
    def packets(self) -> Packets:
        self._complaints.forget()
        with self.opened() as (container, stream):
            return Packets.of(container, stream, self._complaints)

    @property
    def has_closed_groups(self) -> bool:
        """Whether every picture can be had by decoding from a key frame that the index names."""
        if self.format not in INDEXED or self.is_cut_off:
            return False
        return self.packets.are_sound and self.packets.have_closed_groups

    @property
    def is_for_decord(self) -> bool:
        """Not where frames are reordered: most of those nobody needs, and only PyAV can pass them over."""
        if self.codec not in DECORDS_CODECS or self.num_video_streams != 1:
            return False
        return self.has_closed_groups and not self.packets.are_reordered

    def duration_seconds(self) -> float | None:
        """What the container promises where that is likely, else what its packets tell; None for nonsense."""
        promised = self.promised_seconds
        if promised and _is_likely(promised, self._num_bytes):
            return promised
        measured = self.packets.ends_seconds
        return measured if measured <= MOST_SECONDS_A_FRAME * len(self.packets.times) else None

    def reaches(self, seconds: float) -> bool:
        """Whether its packets go on for so long."""
        return self.packets.reach(seconds + self.origin_seconds)


def frames_of(context: Any, packets: Iterator[Any], on_damage: Callable[[], None]) -> Iterator[Any]:
    """Frames in the order they are shown; packets that do not decode are told of and passed over, as players
    do."""
    for packet in packets:
        yield from decoded(context, packet, on_damage)


def frames_before_the_cut(
    context: Any, packets: Iterator[Any], on_damage: Callable[[], None]
) -> Iterator[Any]:
    """Frames of a file that is cut off: those that are as they are in the whole of it.

    The last frame may lack its end. Those that a decoder holds back until it is told that there are no more
    may be shown for others that lay behind the cut.
    """
    whole = itertools.takewhile(lambda packet: packet.size, packets)
    frames = (frame for packet in whole for frame in decoded(context, packet, on_damage))
    return (frame for frame, _ in itertools.pairwise(frames))


def decoded(context: Any, packet: Any, on_damage: Callable[[], None]) -> Iterator[Any]:
    """Frames that come of a packet, or of the end (None)."""
    if packet is not None and packet.size == 0 and packet.dts is not None:
        return  # theora repeats a frame with an empty packet, which PyAV refuses
    try:
        yield from context.decode(packet)
    except av.error.FFmpegError as error:  # of any kind: decoders say -1, or that an argument is invalid
        if isinstance(error, MemoryError):
            raise
        on_damage()


def _options_for(path: str) -> dict[str, str]:
    """Options under which the file shows its video streams."""
    with _container(path) as container:
        return {} if container.streams.video else LONG_PROBE


def _first_frame(container: Any, is_cut_off: bool) -> tuple[int, Any]:
    """Of the first stream that has one: its index, and the frame."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise RefusedError("no_video", "the file has no video stream")
    streams = [stream for stream in streams if stream.codec_context]
    if not streams:
        raise RefusedError("unsupported", "this build has no decoder for the video stream")
    found: dict[int, Any] = {}
    timelines = {stream.index: Timeline(container, stream) for stream in streams}
    for packet in packets_of(container, streams):
        index = packet.stream.index  # `packet.stream_index` is 0 where the end of any stream is told
        if index not in found:
            timelines[index].move(packet)
            first = next(decoded(packet.stream.codec_context, packet, lambda: None), None)
            found |= {} if first is None else {index: first}
        if streams[0].index in found:
            break
    if not found and _is_animated_webp(container.name):
        raise RefusedError("unsupported", "an animated WebP, which no decoder of this build knows")
    if not found:
        raise RefusedError(*(NOTHING_BEFORE_THE_CUT if is_cut_off else NOTHING_TO_DECODE))
    return min(found.items())


def _is_animated_webp(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(1 << 12)
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP" and b"ANIM" in head


@contextlib.contextmanager
def _container(path: str, options: dict[str, str] | None = None) -> Iterator[Any]:
    try:
        container = av.open(path, metadata_errors="replace", options=options or {})
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise
        raise _unreadable(path, error) from None
    with container:
        for stream in container.streams.video:
            if stream.codec_context:
                stream.thread_type = "NONE"
                stream.codec_context.thread_count = 1
        yield container


def _unreadable(path: str, error: Exception) -> RefusedError:
    with open(path, "rb") as file:
        head = file.read(1 << 12)
    if head[4:8] == b"ftyp":
        sentence = "an MP4 file without its index (moov): it was cut off while it was written"
        return RefusedError("truncated", sentence)
    reason = getattr(error, "strerror", None) or error
    return RefusedError("not_media", f"no demuxer knows this file: {reason}")


def _is_likely(promised_seconds: float, num_bytes: int) -> bool:
    bytes_a_second = num_bytes / promised_seconds
    return (
        promised_seconds <= LONGEST_BELIEVED_SECONDS
        and LEAST_BYTES_A_SECOND <= bytes_a_second <= MOST_BYTES_A_SECOND
    )


def _promise(stream: Any) -> float | None:
    """Seconds that the container promises, or None where it says nothing."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return stream.container.duration / av.time_base if stream.container.duration else None
