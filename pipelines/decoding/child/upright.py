"""Which way up a coded picture is shown: what a container, or the EXIF of a photo, says of turning it.

Cameras that are turned say so; so do those that face their owner, and mirror what they see.
"""

from dataclasses import dataclass
from typing import Any

import av.filter
import numpy as np
from av.sidedata.sidedata import Type

Filter = tuple[str, str | None]
CLOCKWISE: Filter = ("transpose", "clock")
TURNS: tuple[tuple[Filter, ...], ...] = (
    (),
    (("transpose", "cclock"),),
    (CLOCKWISE, CLOCKWISE),
    (CLOCKWISE,),
)
"""By quarter turns counter-clockwise, as decord makes them."""
MIRRORED: tuple[tuple[Filter, ...], ...] = (
    (("vflip", None),),
    (("transpose", "clock_flip"),),
    (("hflip", None),),
    (("transpose", "cclock_flip"),),
)
"""The same of a mirrored picture, as the `ffmpeg` command makes them."""
MOST_KINDS = 64
"""Of what may be said beside a frame; FFmpeg knows some 32."""


@dataclass(frozen=True, slots=True)
class Turning:
    quarter_turns: int
    """Counter-clockwise, from the coded picture to the upright one."""
    is_mirrored: bool
    """What decord does not know of."""

    @classmethod
    def of(cls, frame: Any) -> "Turning":
        """Of the first frame of a video."""
        return cls(round(frame.rotation / 90) % 4, _is_mirrored(frame))

    @property
    def swaps_sides(self) -> bool:
        return self.quarter_turns % 2 == 1

    @property
    def filters(self) -> tuple[Filter, ...]:
        """Name and argument of each, before the picture is resized."""
        return (MIRRORED if self.is_mirrored else TURNS)[self.quarter_turns]


def _is_mirrored(frame: Any) -> bool:
    try:
        said = frame.side_data
    except ValueError:  # PyAV does not know all that FFmpeg says, such as EXIF
        said = _known_alone(frame).side_data
    matrix = said.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3).astype(float)
    return bool(a * d < b * c)


def _known_alone(frame: Any) -> Any:
    """The frame without what PyAV raises at."""
    graph, known = av.filter.Graph(), {kind.value for kind in Type}
    size, pixels = f"{frame.width}x{frame.height}", frame.format.name
    graph.link_nodes(
        graph.add("buffer", video_size=size, pix_fmt=pixels, time_base="1/1"),
        *(graph.add("sidedata", f"mode=delete:type={kind}") for kind in set(range(MOST_KINDS)) - known),
        graph.add("buffersink"),
    )
    graph.configure()
    graph.push(frame)
    return graph.vpull()
