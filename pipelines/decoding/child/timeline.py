"""A timeline that only goes on: where timestamps jump, what follows is moved to what came before.

Recordings and streams are put together by joining files, each of which counts from its own beginning; a
damaged packet may claim any time. The `ffmpeg` command moves such packets in the same way.
"""

from typing import Any

from av.format import Flags

RATE_OF_RAW_STREAMS = 25
JUMPS_BACK_SECONDS = 0.1
"""Packets lie in the order in which they are decoded; in sound files its timestamps never go back."""
REORDERED_FRAMES = 16
"""In most formats that timestamp is guessed, and may be off by what a coder may shuffle."""
JUMPS_AHEAD_SECONDS = 60.0
"""A picture that stands for longer than this is a jump, in formats that allow of them."""


class Timeline:
    """Of one stream, whose packets it is shown in the order of the file."""

    def __init__(self, container: Any, stream: Any) -> None:
        a_second = float(1 / stream.time_base)
        is_for_joining = bool(container.format.flags & Flags.ts_discont.value)
        self._frame = round(a_second / frame_rate(stream))
        self._back = round(JUMPS_BACK_SECONDS * a_second)
        self._back_if_timed = self._back + (0 if is_for_joining else REORDERED_FRAMES * self._frame)
        self._ahead = round(JUMPS_AHEAD_SECONDS * a_second) if is_for_joining else None
        self._last: int | None = None
        self._next = 0
        """When the packet before is decoded, and when it ends."""
        self._was_timed = True
        self._offset = 0
        self.has_jumped = False

    def move(self, packet: Any) -> Any:
        """The packet, moved to where it belongs."""
        if packet.size and not packet.is_discard:
            self._follow(packet)
        if self._offset:
            packet.pts, packet.dts = self._moved(packet.pts), self._moved(packet.dts)
        return packet

    def _follow(self, packet: Any) -> None:
        """Packets without timestamps are counted, and the next one with any lies behind them."""
        if packet.dts is None and packet.pts is not None:
            return
        is_timed = packet.dts is not None
        stamp = packet.dts + self._offset if is_timed else self._next
        if self._last is not None and self._jumps(stamp, self._last):
            self._offset += self._next - stamp
            self.has_jumped, stamp = True, self._next
        self._last, self._next, self._was_timed = stamp, stamp + (packet.duration or self._frame), is_timed

    def _jumps(self, stamp: int, last: int) -> bool:
        most_back = self._back_if_timed if self._was_timed else self._back
        return last - stamp > most_back or (self._ahead is not None and stamp - self._next > self._ahead)

    def _moved(self, stamp: int | None) -> int | None:
        return None if stamp is None else stamp + self._offset


def frame_rate(stream: Any) -> Any:
    return stream.average_rate or stream.guessed_rate or RATE_OF_RAW_STREAMS
