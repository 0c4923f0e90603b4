"""PyAV for files of closed groups of pictures: each is decoded by itself, and only as far as it is shown.

A group begins at the packet that the index names, with a decoder that remembers no other. A picture is then a
function of its group's packets: not of where decoding began, nor of damage that lies in another group, or
behind the last picture that is shown of its own.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.decoding.child.beginning import packets_from
from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.packets import Packets
from pipelines.decoding.child.sampling import TIME_TOLERANCE, Sampled, numbers_shown
from pipelines.decoding.child.shapes import Pictures, Shape
from pipelines.decoding.child.video import Video, decoded

PASSED_OVER = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8"}
"""Codecs whose decoders ask of every packet whether to skip it. Others ask as they open (dav1d), or never."""


def sample(video: Video, shape: Shape, request: dict[str, Any], complaints: Complaints) -> Sampled:
    """Passes over pictures that are not shown and that no other needs; at any sign of damage it decodes them
    all: the file may not tell the truth about who needs whom."""
    is_possible = video.codec in PASSED_OVER and not video.first_frame.interlaced_frame
    if is_possible and not video.is_for_decord:  # which decodes all, and must agree
        sampled = _sample(video, shape, request, complaints, passes_over=True)
        if not sampled.num_damaged:
            return sampled
    return _sample(video, shape, request, complaints, passes_over=False)


def _sample(
    video: Video, shape: Shape, request: dict[str, Any], complaints: Complaints, *, passes_over: bool
) -> Sampled:
    sampled, packets = Sampled("pyav"), video.packets
    sampled.num_source_frames, sampled.ends_seconds = len(packets.times), packets.ends_seconds
    numbers, inverse = np.unique(numbers_shown(request, packets.times), return_inverse=True)
    pictures, found = Pictures(shape, sampled.pictures), dict[int, int]()
    due = _by_group(numbers, packets)
    for group, stream, coded in _groups(video, min(due)) if due else ():
        if group in due:
            frames = _Frames(video, stream, coded, complaints)
            for number, frame in frames.shown(due.pop(group), passes_over=passes_over):
                found[number] = pictures.index(frame)
            sampled.num_damaged += frames.signs_until_shown
        if not due:
            break
    indices = _filled([found.get(number) for number in numbers.tolist()])
    sampled.indices = [indices[place] for place in inverse.tolist() if place < len(indices)]
    return sampled


def _by_group(numbers: np.ndarray, packets: Packets) -> dict[int, list[int]]:
    """Of frames by their numbers, those of each group."""
    first = np.searchsorted(
        packets.times, packets.seconds_of(np.array([key.shown for key in packets.keys])) - TIME_TOLERANCE
    )
    groups = (np.searchsorted(first, numbers, side="right") - 1).tolist()
    pairs = itertools.groupby(zip(groups, numbers.tolist(), strict=True), lambda pair: pair[0])
    return {group: [number for _, number in members] for group, members in pairs}


def _groups(video: Video, first: int) -> Iterator[tuple[int, Any, Iterator[Any]]]:
    """From the group `first` on: its number, the stream, and its packets."""
    keys = video.packets.keys
    groups = {key.shown: group for group, key in enumerate(keys)}
    with packets_from(video, keys[first] if first else None) as (stream, packets):
        group = first

        def group_of(packet: Any) -> int:
            nonlocal group
            if packet.is_keyframe:
                group = groups.get(packet.pts, group)
            return group

        coded = itertools.takewhile(lambda packet: packet.size, packets)
        for number, members in itertools.groupby(coded, group_of):
            yield number, stream, members


class _Frames:
    """The frames of one group, as their decoder gives them."""

    def __init__(self, video: Video, stream: Any, coded: Iterator[Any], complaints: Complaints) -> None:
        self._stream, self._coded = stream, coded
        self._packets, self._complaints = video.packets, complaints
        self._believes_flags = not video.is_for_decord  # which does not pass them on
        self._signs = 0
        self.signs_until_shown = 0
        """Signs of damage up to the last frame that is shown: any of them may have spoilt it."""

    def shown(self, numbers: list[int], *, passes_over: bool) -> Iterator[tuple[int, Any]]:
        """The frames of these numbers in the file; for a lost one, that before it, or the first.

        `passes_over`: of the others only those are decoded that other pictures refer to. Then a sign of
        damage is one that is lost, too, or one of two fields, which may be packets of their own.
        """
        before = None
        wanted = [(number, self._packets.times[number]) for number in numbers]
        only = {self._packets.pts_of(number) for number in numbers} if passes_over else None
        for frame in self._decoded(only):
            starts = self._packets.seconds_of(frame.pts)
            while wanted and starts >= wanted[0][1] - TIME_TOLERANCE:
                number, due = wanted.pop(0)
                is_lost = starts > due + TIME_TOLERANCE
                self._signs += passes_over and (is_lost or frame.interlaced_frame)
                self.signs_until_shown = self._signs_so_far()
                yield number, before if before and is_lost else frame
            if not wanted:
                return
            before = frame
        self._signs += passes_over and len(wanted)
        self.signs_until_shown = self._signs_so_far()
        yield from ((number, before) for number, _ in wanted if before)

    def _decoded(self, only: set[int] | None) -> Iterator[Any]:
        """Frames in the order they are shown; with `only`, those of these timestamps and what they need."""
        self._complaints.forget()
        context = self._stream.codec_context
        context.flush_buffers()
        for packet in itertools.chain(self._coded, [None]):
            if only is not None:
                is_due = packet is None or packet.pts in only
                context.skip_frame = "DEFAULT" if is_due else "NONREF"
            for frame in decoded(context, packet, self._met):
                self._signs += self._believes_flags and frame.is_corrupt
                if frame.pts is not None:
                    yield frame

    def _met(self) -> None:
        self._signs += 1

    def _signs_so_far(self) -> int:
        self._signs += self._complaints.count()
        return self._signs


def _filled(indices: list[int | None]) -> list[int]:
    """Where a whole group is lost, the picture before it stands in; at the beginning the one behind, at the
    end nothing."""
    while indices and indices[-1] is None:
        indices.pop()
    before = next((index for index in indices if index is not None), 0)
    filled = []
    for index in indices:
        before = before if index is None else index
        filled.append(before)
    return filled
