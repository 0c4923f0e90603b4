"""Where decoding begins: at a key frame well before the frames that are asked for, or where the file does.

A seek is but a short cut to that key frame. Where it fails, or leads past it, the packets before it are read
and passed over, which costs a hundredth of decoding them: what is decoded depends on the file alone.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import av

from pipelines.decoding.child.packets import Key, packets_of
from pipelines.decoding.child.timeline import Timeline
from pipelines.decoding.child.video import Video

LANDS_EARLY_SECONDS = 1.0
"""A seek aims at this much before the key frame: the first packets behind one may be in pieces."""


@contextlib.contextmanager
def packets_from(video: Video, key: Key | None) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The stream, and its packets from that key frame on, on a timeline that only goes on."""
    if key is not None and not video.packets.have_jumps:
        with video.opened() as (container, stream):
            packets = _after_a_seek(container, stream, key)
            if packets is not None:
                yield stream, packets
                return
    with video.opened() as (container, stream):
        timeline = Timeline(container, stream)
        packets = (timeline.move(packet) for packet in packets_of(container, [stream]))
        yield stream, itertools.islice(packets, key.number if key else 0, None)


def _after_a_seek(container: Any, stream: Any, key: Key) -> Iterator[Any] | None:
    """None where the key frame is not found."""
    try:
        container.seek(key.decoded - round(LANDS_EARLY_SECONDS / stream.time_base), stream=stream)
    except av.error.FFmpegError as error:  # raw streams: "Invalid argument", "Operation not permitted"
        if isinstance(error, MemoryError):
            raise
        return None
    packets = packets_of(container, [stream])
    for packet in packets:
        if packet.is_keyframe and packet.pts == key.shown:
            return itertools.chain([packet], packets)
        if packet.dts is not None and packet.dts > key.decoded:
            return None
    return None
