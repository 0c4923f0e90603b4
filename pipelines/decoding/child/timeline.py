"""A timeline that only goes on: where timestamps jump, what follows is moved to what came before.

Recordings and streams are put together by joining files, each of which counts from its own beginning; a
damaged packet may claim any time. The `ffmpeg` command moves such packets in the same way.
"""

from typing import Any

from av.format import Flags

RATE_OF_RAW_STREAMS = 25
JUMPS_BACK_SECONDS = 0.1
"""Packets lie in the order in which they are decoded; in sound files its timestamps never go back."""
JUMPS_AHEAD_SECONDS = 60.0
"""A picture that stands for longer than this is a jump, in formats that allow of them."""


class Timeline:
    """Of one stream, whose packets it is shown in the order of the file."""

    def __init__(self, container: Any, stream: Any) -> None:
        a_second = float(1 / stream.time_base)
        may_jump_ahead = container.format.flags & Flags.ts_discont.value
        self._back = -round(JUMPS_BACK_SECONDS * a_second)
        self._ahead = round(JUMPS_AHEAD_SECONDS * a_second) if may_jump_ahead else None
        self._frame = round(a_second / frame_rate(stream))
        self._last = self._next = 0
        """When the packet before is decoded, and when it ends."""
        self._has_begun = False
        self._offset = 0
        self.has_jumped = False

    def move(self, packet: Any) -> Any:
        """The packet, moved to where it belongs. Those that are not shown or not timed are not judged."""
        dts = packet.dts
        if dts is not None and packet.size and not packet.is_discard:
            dts += self._offset
            if self._has_begun and self._jumps(dts):
                self._offset += self._next - dts
                self.has_jumped, dts = True, self._next
            self._last, self._next, self._has_begun = dts, dts + (packet.duration or self._frame), True
        if self._offset:
            packet.pts, packet.dts = self._moved(packet.pts), self._moved(packet.dts)
        return packet

    def _jumps(self, dts: int) -> bool:
        return dts - self._last < self._back or (self._ahead is not None and dts - self._next > self._ahead)

    def _moved(self, stamp: int | None) -> int | None:
        return None if stamp is None else stamp + self._offset


def frame_rate(stream: Any) -> Any:
    return stream.average_rate or stream.guessed_rate or RATE_OF_RAW_STREAMS
