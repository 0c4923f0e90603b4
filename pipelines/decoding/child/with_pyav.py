"""PyAV: forward from the key frame before the span, a frame kept for as long as it is shown."""

from collections.abc import Iterator
from typing import Any

from pipelines.decoding.child import by_group
from pipelines.decoding.child.beginning import packets_from
from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.packets import Key
from pipelines.decoding.child.sampling import TIME_TOLERANCE, Sampled, sampling_times
from pipelines.decoding.child.shapes import Pictures, Shape
from pipelines.decoding.child.timeline import frame_rate
from pipelines.decoding.child.video import Video, frames_before_the_cut, frames_of

MARGIN_SECONDS = 10.0
"""Decoding starts at the last key frame that is this much before a span: some pictures need more than the
group that they are in."""


def sample(video: Video, shape: Shape, request: dict[str, Any], complaints: Complaints) -> Sampled:
    """Goes further back, in the end to the beginning of the file, until a frame is there when the span
    begins."""
    if video.has_closed_groups:
        return by_group.sample(video, shape, request, complaints)
    margin = MARGIN_SECONDS
    while True:
        key = _key_before(video, request["start"] - margin)
        sampled = Sampled("pyav")
        if _fill(sampled, video, key, shape, request, complaints) or key is None:
            return sampled
        margin *= 2


def _key_before(video: Video, seconds: float) -> Key | None:
    return video.packets.key_before(seconds + video.origin_seconds) if seconds > 0 else None


def _fill(
    sampled: Sampled,
    video: Video,
    key: Key | None,
    shape: Shape,
    request: dict[str, Any],
    complaints: Complaints,
) -> bool:
    """Decodes from that key frame on. Whether a frame is shown when the span begins, or none is to be
    expected there."""
    wanted, pictures = sampling_times(request), Pictures(shape, sampled.pictures)
    time, shown = next(wanted, None), None
    with packets_from(video, key) as (stream, packets):
        damage = _Damage(complaints)
        readable = frames_before_the_cut if video.is_cut_off else frames_of
        frames = readable(stream.codec_context, packets, damage.met)
        for frame, starts in _timed(frames, stream, video.origin_seconds):
            if starts < request["start"]:
                damage.forget()
            elif shown is None and key is not None and starts > request["start"] + TIME_TOLERANCE:
                return False
            damage.num_found += frame.is_corrupt
            while shown is not None and time is not None and time < starts - TIME_TOLERANCE:
                sampled.indices.append(pictures.index(shown))
                time = next(wanted, None)
            if time is None:
                break
            shown, shown_at = frame, starts
            sampled.num_source_frames += 1
            sampled.ends_seconds = starts + _lasts(frame, stream)
        while shown is not None and time is not None and time <= shown_at + TIME_TOLERANCE:
            sampled.indices.append(pictures.index(shown))
            time = next(wanted, None)
        sampled.num_damaged = damage.count()
    return bool(sampled.indices) or not video.reaches(request["start"])


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
