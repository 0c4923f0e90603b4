"""What is wrong with a span of which some frames, or none, were decoded: a class and a sentence."""

from typing import Any

from pipelines.decoding.child.sampling import Sampled
from pipelines.decoding.child.video import NOTHING_BEFORE_THE_CUT, NOTHING_TO_DECODE, Video

Fault = tuple[str, str]
"""An error class and a sentence."""
ENDS_EARLY_SECONDS = 1.0
"""A video that ends this much before the time its container promises counts as cut off."""

NOTHING_SHOWN = ("corrupt", "the video stream goes on, but not one frame of this span can be decoded")


def fault(video: Video, sampled: Sampled, request: dict[str, Any]) -> Fault | None:
    """None where nothing is wrong. With frames, only a part of the span was lost."""
    start, end = request["start"], request["end"]
    if start == 0 and not sampled.num_source_frames:
        return NOTHING_BEFORE_THE_CUT if video.is_cut_off else NOTHING_TO_DECODE
    promised = video.duration_seconds() if video.is_cut_off is not False else None
    due = min(promised or 0.0, promised or 0.0 if end is None else end)
    ends_early = due - max(start, sampled.ends_seconds) >= ENDS_EARLY_SECONDS
    if ends_early and not video.packets.have_jumps:  # which a promise may count in
        sentence = f"the video ends at {sampled.ends_seconds:.1f} s, its container promises {promised:.1f} s"
        return "truncated", sentence
    if video.is_cut_off and end is None:
        return "truncated", f"the file is cut off; what is left of it ends at {sampled.ends_seconds:.1f} s"
    if start > 0 and not sampled.indices and video.reaches(start):
        return NOTHING_SHOWN
    if sampled.num_damaged:
        sentence = f"{sampled.num_damaged} signs of damage; pictures may be wrong or stand in for others"
        return "corrupt", sentence
    return None
