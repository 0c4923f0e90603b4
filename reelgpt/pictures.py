"""Pictures for people: strips of frames as PNG, charts as SVG. They do not know where numbers come from."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Frames = NDArray[np.uint8]

INK, PAPER, FAINT = "#1f2430", "#ffffff", "#8b93a3"
COLOURS = ("#3257d6", "#d9622b", "#2a8f5b", "#8b93a3")
_LABEL_PIXELS, _GAP_PIXELS = 22, 3
_FEW_POINTS = 12
"""Up to this many points of a curve are marked, so that a single one can be seen."""


def film_strip(rows: Mapping[str, Frames], *, frame_pixels: int = 128, num_given: int = 0) -> bytes:
    """A PNG with a labelled row of frames (T, H, W, 3) for each entry; a line ends those that were given."""
    step = frame_pixels + _GAP_PIXELS
    longest = max(len(frames) for frames in rows.values())
    sheet = Image.new("RGB", (longest * step - _GAP_PIXELS, len(rows) * (_LABEL_PIXELS + step)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (label, frames) in enumerate(rows.items()):
        top = i * (_LABEL_PIXELS + step)
        pen.text((1, top + 3), label, fill=INK, font=ImageFont.load_default(14))
        for j, frame in enumerate(frames):
            sheet.paste(_enlarged(frame, frame_pixels), (j * step, top + _LABEL_PIXELS))
    if num_given:
        x = num_given * step - 2
        pen.line((x, _LABEL_PIXELS, x, sheet.height), fill=COLOURS[1], width=2)
    return _png(sheet)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def chart(
    curves: Sequence[Curve], *, x_label: str, y_label: str, levels: Mapping[str, float] | None = None
) -> str:
    """An SVG of curves, with horizontal levels such as baselines; fonts are the page's own."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    with pyplot.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "reelgpt", "font.size": 9, "lines.markersize": 4}
    ):
        figure, axes = pyplot.subplots(figsize=(5.2, 3.0), layout="constrained")
        for curve, colour in zip(curves, _cycle(len(curves)), strict=True):
            style = "--" if curve.dashed else "-"
            marker = "o" if len(curve.x) <= _FEW_POINTS else None
            axes.plot(curve.x, curve.y, style, color=colour, label=curve.label, linewidth=1.6, marker=marker)
        for (label, level), style in zip((levels or {}).items(), ("--", ":", "-."), strict=False):
            axes.axhline(level, color=FAINT, linestyle=style, linewidth=1.2, label=f"{label} {level:.2f}")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e8eaf0", linewidth=0.8)
        axes.legend(frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
        pyplot.close(figure)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _enlarged(frame: Frames, pixels: int) -> Image.Image:
    height, width = frame.shape[:2]
    longer = max(height, width)
    size = (max(1, round(pixels * width / longer)), max(1, round(pixels * height / longer)))
    sampling = Image.Resampling.NEAREST if longer <= pixels else Image.Resampling.LANCZOS
    return Image.fromarray(frame).resize(size, sampling)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
