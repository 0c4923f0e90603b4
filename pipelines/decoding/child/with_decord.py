"""decord, where it shows of a damaged file what PyAV shows, as long as it neither refuses nor complains.

decord reads ahead in a thread of its own: what it trips over behind a span is said before the answer or
after, as it comes; what lies before a picture shown, always before. Nothing is therefore concluded from
complaints but that PyAV is asked as well, which tells the two apart.
"""

from typing import Any

import decord
import numpy as np

from pipelines.decoding.child.complaints import Complaints
from pipelines.decoding.child.sampling import TIME_TOLERANCE, Sampled, numbers_shown
from pipelines.decoding.child.shapes import Shape
from pipelines.decoding.child.video import Video

NO_STAND_INS = 1e-9
"""Share of frames that may be replaced by a neighbour without a word."""
BYTES_AT_ONCE = 64 << 20
"""Uncropped pictures that are held at a time."""
REFUSALS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)


class DecordReader:
    """One open file. It is thrown away after anything but a clean span."""

    def __init__(self, video: Video, shape: Shape) -> None:
        self._shape = shape
        self._times = video.packets.times
        self._ends_seconds = video.packets.ends_seconds
        self._reader = decord.VideoReader(
            video.path, width=shape.width, height=shape.height, num_threads=1, fault_tol=NO_STAND_INS
        )

    def sees_the_same_frames(self) -> bool:
        """As the packets tell: where a file has an edit list, decord counts frames that are not shown."""
        if len(self._reader) != len(self._times):
            return False
        starts = self._reader.get_frame_timestamp(range(len(self._times)))[:, 0]  # float32
        apart = np.abs((starts - starts[0]) - self._times)
        return bool((apart <= TIME_TOLERANCE + np.spacing(starts)).all())

    def sample(self, request: dict[str, Any]) -> Sampled:
        sampled = Sampled("decord")
        sampled.num_source_frames, sampled.ends_seconds = len(self._times), self._ends_seconds
        numbers, inverse = np.unique(numbers_shown(request, self._times), return_inverse=True)
        if len(numbers):
            self._reader.seek(0)  # nothing of the span before is left in the decoder
            sampled.pictures, sampled.indices = self._pictures(numbers.tolist()), inverse.tolist()
        return sampled

    def _pictures(self, numbers: list[int]) -> list[np.ndarray]:
        """Turned upright by decord itself."""
        at_once = max(1, BYTES_AT_ONCE // (3 * self._shape.width * self._shape.height))
        return [
            self._shape.cut(picture)
            for start in range(0, len(numbers), at_once)
            for picture in self._reader.get_batch(numbers[start : start + at_once]).asnumpy()
        ]


def reader_for(video: Video, shape: Shape) -> DecordReader | None:
    """None where decord is not to be asked, or refuses the file with an error."""
    if shape.precrop is not None or shape.turning.is_mirrored or not video.is_for_decord:
        return None
    try:
        reader = DecordReader(video, shape)
        return reader if reader.sees_the_same_frames() else None
    except REFUSALS:
        return None


def sample(reader: DecordReader, request: dict[str, Any], complaints: Complaints) -> Sampled | None:
    """None where decord refused. What it complained of is left to be counted."""
    complaints.forget()
    try:
        return reader.sample(request)
    except REFUSALS:
        return None
