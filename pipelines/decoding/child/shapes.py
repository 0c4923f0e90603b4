"""From a coded picture to an upright one of the size asked for, by the same filters as decord's.

Both decoders resize with a graph of FFmpeg's filters, so that they give the same bytes for a picture. (PyAV's
own `reformat` knows nothing of where chroma samples lie, and is 1.7 levels off on average.) Which way is up
is another room's matter.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av.filter
import numpy as np

from pipelines.decoding.child.upright import Turning

WIDEST = 8
"""How many times a picture may be as wide, or as high, as what is cut out of it. Beyond, PyAV cuts it before
it resizes it, lest a resized picture fill the memory."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the upright picture, from square pixels: just large enough to cover `crop`."""

    width: int
    height: int
    turning: Turning
    crop: tuple[int, int]
    """Height and width of what is cut out of its centre."""
    source_width: int
    source_height: int
    precrop: tuple[int, int] | None
    """Width and height to cut out of the coded picture, where that is extremely wide or high."""

    @classmethod
    def of(cls, pixel_aspect: Fraction | None, frame: Any, sizes: list[tuple[int, int]]) -> "Shape":
        aspect = Fraction(pixel_aspect or 1) if (pixel_aspect or 1) > 0 else Fraction(1)
        width, height = frame.width * aspect, Fraction(frame.height)
        turning = Turning.of(frame)
        if turning.swaps_sides:
            width, height = height, width
        rows, columns = _nearest_in_aspect(sizes, float(width / height))
        scale = max(Fraction(rows) / height, Fraction(columns) / width)
        covering = (max(columns, round(width * scale)), max(rows, round(height * scale)))
        precrop = None
        if covering[0] > WIDEST * columns or covering[1] > WIDEST * rows:
            covering, middle = (columns, rows), (columns / scale, rows / scale)
            across, down = reversed(middle) if turning.swaps_sides else middle
            precrop = max(1, int(across / aspect)), max(1, int(down))
        return cls(*covering, turning, (rows, columns), round(width), round(height), precrop)

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The middle of an upright picture, (*crop, 3), as memory of its own."""
        rows, columns = self.crop
        top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
        return picture[top : top + rows, left : left + columns].copy()


class Converter:
    """Frames of PyAV to pictures of one shape. A stream may change its size or format between frames."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._graph: av.filter.Graph | None = None
        self._made_for: tuple[object, ...] = ()

    def convert(self, frame: Any) -> np.ndarray:
        """Resized, upright, cut: (H, W, 3) uint8."""
        properties = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or properties != self._made_for:
            self._graph, self._made_for = self._graph_for(frame), properties
        frame.pts = None  # a picture is asked for, not a place in a stream
        self._graph.push(frame)
        return self._shape.cut(self._graph.vpull().to_ndarray())

    def _graph_for(self, frame: Any) -> av.filter.Graph:
        shape = self._shape
        graph = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base="1/1",
                colorspace=str(int(frame.colorspace)),
                range=str(int(frame.color_range)),
            )
        ]
        if shape.precrop is not None:
            nodes.append(graph.add("crop", _cropping(frame.format, *shape.precrop)))
        nodes += [graph.add(*turn) for turn in shape.turning.filters]
        nodes += [graph.add("scale", f"{shape.width}:{shape.height}"), graph.add("format", "rgb24")]
        graph.link_nodes(*nodes, graph.add("buffersink"))
        graph.configure()
        return graph


def _cropping(pixels: Any, width: int, height: int) -> str:
    """The filter leaves whole samples of chroma, of several pixels each, unless that would be none."""
    least = 16 // pixels.chroma_width(16), 16 // pixels.chroma_height(16)
    is_exact = width < least[0] or height < least[1]
    return f"{width}:{height}:exact={int(is_exact)}"


def _nearest_in_aspect(sizes: list[tuple[int, int]], aspect: float) -> tuple[int, int]:
    """The first of `sizes` (height, width) that distorts or crops least: as a ratio, so by the logarithm."""
    rows, columns = min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / aspect)))
    return rows, columns


class Pictures:
    """Converts a frame once, however often it is shown."""

    def __init__(self, shape: Shape, pictures: list[np.ndarray]) -> None:
        """`pictures`: the list that they go to."""
        self._converter, self._pictures = Converter(shape), pictures
        self._last: Any = None

    def index(self, frame: Any) -> int:
        """Of the frame's picture in the list; the same for as long as the same frame is asked for."""
        if frame is not self._last:
            self._pictures.append(self._converter.convert(frame))
            self._last = frame
        return len(self._pictures) - 1
