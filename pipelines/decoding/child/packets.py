"""What packets tell without being decoded: when each frame is shown, and where decoding may begin."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.timeline import Timeline, frame_rate


@dataclass(frozen=True, slots=True)
class Key:
    """The packet of a key frame."""

    number: int
    """Packets of the stream before it, in the order of the file."""
    shown: int
    decoded: int
    """Its timestamps, in the stream's unit, as they stand in the file."""
    seconds: float
    """When it is shown, by the timeline that only goes on."""


@dataclass(frozen=True, slots=True)
class Packets:
    """What demuxing the whole stream tells, without decoding it: some 4 microseconds a packet."""

    times: np.ndarray
    """(N,) float64, sorted: the seconds since the first frame at which each frame starts."""
    ends_seconds: float
    are_timed: bool
    """False where a packet has no timestamp, as in raw streams: then frames are counted."""
    are_sound: bool
    """Whether the demuxer had nothing to complain of."""
    first_pts: int = 0
    unit_seconds: float = 1.0
    keys: tuple[Key, ...] = ()
    """In the order of the file: those that have a timestamp."""
    have_jumps: bool = False
    """Whether timestamps jump, so that a seek by them may lead anywhere."""
    have_closed_groups: bool = False
    """False where a frame is shown before the key frame that it comes after in the file: it may refer to the
    group before, and cannot be decoded by who starts at that key frame. False, too, where two frames have one
    timestamp, which tells them apart, or parts of a group are not shown."""
    are_reordered: bool = False
    """Whether frames lie in the file in another order than they are shown in, as where some are predicted
    from later ones (B-frames)."""

    def seconds_of(self, pts: Any) -> Any:
        return (pts - self.first_pts) * self.unit_seconds

    def pts_of(self, number: int) -> int:
        """The timestamp of a frame by its number."""
        return self.first_pts + round(float(self.times[number]) / self.unit_seconds)

    @classmethod
    def of(cls, container: Any, stream: Any, complaints: Complaints) -> "Packets":
        timeline, seen = Timeline(container, stream), _Seen(float(stream.time_base))
        for number, packet in enumerate(packets_of(container, [stream])):
            shown, decoded = packet.pts, packet.dts
            seen.add(timeline.move(packet))
            if packet.is_keyframe and packet.size and not packet.is_discard and shown is not None:
                seen.add_key(number, shown, shown if decoded is None else decoded, packet.pts)
        are_sound = not complaints.count()
        if not seen.pts or not seen.are_timed:
            num, rate = len(seen.durations), float(frame_rate(stream))
            counted, keys = np.arange(num) / rate, tuple(seen.keys)
            return cls(counted, num / rate, False, are_sound, keys=keys, have_jumps=timeline.has_jumped)
        times, ends_seconds = seen.in_order()
        return cls(
            times,
            ends_seconds,
            are_timed=True,
            are_sound=are_sound,
            first_pts=min(seen.pts),
            unit_seconds=float(stream.time_base),
            keys=tuple(seen.keys),
            have_jumps=timeline.has_jumped,
            have_closed_groups=seen.are_closed
            and not timeline.has_jumped
            and bool((np.diff(times) > 0).all()),
            are_reordered=bool((np.diff(np.frombuffer(seen.pts, np.int64)) < 0).any()),
        )

    def key_before(self, seconds: float) -> Key | None:
        """The last key frame in the file of which, and of all before it, none is shown after `seconds` (by
        the timeline); None is the beginning of the file."""
        found = None
        for key in self.keys:
            if key.seconds > seconds:
                break
            found = key
        return found

    def reach(self, seconds: float) -> bool:
        """Whether a frame is shown from `seconds` on, by the timeline; it may come as two packets, a field
        each."""
        return self.are_timed and int((self.times >= seconds - self.first_pts * self.unit_seconds).sum()) > 1


class _Seen:
    """Columns, since a long video has a million packets."""

    def __init__(self, unit: float) -> None:
        self._unit = unit
        self._key_pts: int | None = None
        self.pts, self.durations, self.keys = array("q"), array("q"), list[Key]()
        self.are_timed = self.are_closed = True

    def add(self, packet: Any) -> None:
        if not packet.size:
            return
        if packet.is_discard:
            self.are_closed = False
            return
        self.durations.append(packet.duration or 0)
        if packet.pts is None:
            self.are_timed = False
            return
        self.pts.append(packet.pts)
        self._group(packet.pts, packet.is_keyframe)

    def _group(self, pts: int, is_key: bool) -> None:
        """Closed groups begin with key frames that are shown one after another, before the rest of theirs."""
        before, self._key_pts = self._key_pts, pts if is_key else self._key_pts
        if is_key:
            self.are_closed &= before is None or pts > before
        else:
            self.are_closed &= before is not None and pts >= before

    def add_key(self, number: int, shown: int, decoded: int, moved: int) -> None:
        self.keys.append(Key(number, shown, decoded, moved * self._unit))

    def in_order(self) -> tuple[np.ndarray, float]:
        """Seconds since the first frame: of each frame's start, and of the last one's end."""
        pts, durations = np.frombuffer(self.pts, np.int64), np.frombuffer(self.durations, np.int64)
        order = np.lexsort((durations, pts))
        times = (pts[order] - pts[order[0]]) * self._unit
        return times, float(times[-1]) + int(durations[order[-1]]) * self._unit


def packets_of(container: Any, streams: list[Any]) -> Iterator[Any]:
    """Up to the end, or to where the demuxer cannot go on."""
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            return  # the latter of an animated PNG that is cut off
        except IndexError:
            return  # PyAV's own, at the end of a file in which streams turned up on the way
        if packet is None:
            return
        yield packet
