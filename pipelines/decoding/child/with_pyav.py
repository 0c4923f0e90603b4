"""PyAV: forward from the key frame before the span, a frame kept for as long as it is shown."""

from collections.abc import Iterator
from typing import Any

from pipelines.decoding.child import by_group
from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.sampling import TIME_TOLERANCE, Sampled, sampling_times
from pipelines.decoding.child.shapes import Converter, Shape
from pipelines.decoding.child.video import Video, frame_rate, frames_before_the_cut, frames_of

SEEK_MARGIN_SECONDS = 10.0
"""Decoding starts this long before a span: after a seek without an index, the first group of pictures may
lack its references."""


def sample(video: Video, shape: Shape, request: dict[str, Any], complaints: Complaints) -> Sampled:
    if video.has_closed_groups:
        return by_group.sample(video, shape, request, complaints)
    sampled, wanted, pictures = Sampled("pyav"), sampling_times(request), _Pictures(shape)
    time, shown = next(wanted, None), None
    with video.opened() as (container, stream):
        _seek(container, stream, request["start"] - SEEK_MARGIN_SECONDS, video.origin_seconds)
        damage = _Damage(complaints)
        readable = frames_before_the_cut if video.is_cut_off else frames_of
        for frame, starts in _timed(readable(container, stream, damage.met), stream, video.origin_seconds):
            if starts < request["start"]:
                damage.forget()
            damage.num_found += frame.is_corrupt
            while shown is not None and time is not None and time < starts - TIME_TOLERANCE:
                pictures.show(sampled, shown)
                time = next(wanted, None)
            if time is None:
                break
            shown, shown_at = frame, starts
            sampled.num_source_frames += 1
            sampled.ends_seconds = starts + _lasts(frame, stream)
        while shown is not None and time is not None and time <= shown_at + TIME_TOLERANCE:
            pictures.show(sampled, shown)
            time = next(wanted, None)
        sampled.num_damaged = damage.count()
    return sampled


class _Pictures:
    """Converts a frame only the first time it is shown."""

    def __init__(self, shape: Shape) -> None:
        self._converter = Converter(shape)
        self._last: Any = None

    def show(self, sampled: Sampled, frame: Any) -> None:
        if frame is not self._last:
            sampled.pictures.append(self._converter.convert(frame))
            self._last = frame
        sampled.indices.append(len(sampled.pictures) - 1)


class _Damage:
    """Signs of damage since the span began."""

    def __init__(self, complaints: Complaints) -> None:
        self._complaints = complaints
        self.forget()

    def forget(self) -> None:
        self._complaints.forget()
        self.num_found = 0

    def met(self) -> None:
        self.num_found += 1

    def count(self) -> int:
        return self.num_found + self._complaints.count()


def _seek(container: Any, stream: Any, seconds: float, origin_seconds: float) -> None:
    if seconds > 0:
        container.seek(int((seconds + origin_seconds) / stream.time_base), stream=stream)


def _timed(frames: Iterator[Any], stream: Any, origin_seconds: float) -> Iterator[tuple[Any, float]]:
    """Frames with the seconds since the first one at which they start; never backwards, and by the frame
    rate where a raw stream has no times."""
    last: float | None = None
    for frame in frames:
        if frame.time is not None:
            starts = max(frame.time - origin_seconds, last or 0.0)
        else:
            starts = 0.0 if last is None else last + float(1 / frame_rate(stream))
        last = starts
        yield frame, starts


def _lasts(frame: Any, stream: Any) -> float:
    return float(frame.duration * stream.time_base if frame.duration else 1 / frame_rate(stream))
