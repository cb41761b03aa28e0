"""Charts as inline SVG and pictures as inline PNG, for pages without scripts. Every chart comes as a figure: the drawing
with a text alternative, a legend that tells series apart by dashes as well as by colour, and its numbers as a table to
open. Nothing here knows what a loss tree is.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.html import Markup, table, tag

Array = NDArray[np.float64]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480.0, 300.0, 66.0, 12.0, 26.0, 46.0


@dataclass(frozen=True)
class Line:
    """A curve through (x, y); points whose y is not finite (or not positive, on a log axis) are left out. `look`, 0 to 3, is a
    colour with its own dashes; 4 is a faint line, for limits."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: int = 0


@dataclass(frozen=True)
class Band:
    """Bins between consecutive edges, one more edge than bins, each a box from low to high with a line at `y`."""

    label: str
    edges: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    look: int = 0


@dataclass(frozen=True)
class Dots:
    """Points with an interval each."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    look: int = 0


Series = Line | Band | Dots


def chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, said: str, log_y: bool = False
) -> Markup:
    """A figure with one or several series on the same axes.

    Arguments
        series            what is drawn, bands first
        title             above the drawing and in its text alternative
        x_label, y_label  of the axes
        said              what the drawing shows, in a sentence, for those who do not see it
        log_y             a logarithmic y axis
    """
    drawable = [_points(part, log_y) for part in series]
    heights = [y for points in drawable for _, y in points]
    if not heights:
        return tag("p", f"{title}: nothing to draw.")
    x_ticks = ticks([x for points in drawable for x, _ in points])
    y_ticks = ticks(heights, whole=log_y)
    frame = _Frame(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1], log_y)
    parts: list[Markup] = []
    for tick in y_ticks:
        y = f"{frame.height(tick):.1f}"
        text = power(tick) if log_y else f"{tick:.6g}"
        parts += [
            tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="rule"),
            tag("text", text, x=_LEFT - 7, y=f"{frame.height(tick) + 4:.1f}", text_anchor="end"),
        ]
    for tick in x_ticks:
        parts.append(
            tag("text", f"{tick:.6g}", x=f"{frame.across(tick):.1f}", y=_HEIGHT - _BOTTOM + 19, text_anchor="middle")
        )
    for part in series:
        parts += _draw(part, frame)
    parts += [
        tag("text", x_label, x=f"{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}", y=_HEIGHT - 7, text_anchor="middle"),
        tag("text", y_label, x=2, y=14),
    ]
    drawing = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        role="img",
        aria_label=f"{title}: {y_label} over {x_label}. {said}",
        class_="chart",
    )
    keys = [tag("span", _swatch(part), f" {part.label}") for part in series]
    legend = tag("span", *keys, class_="legend") if len(series) > 1 else None
    caption = tag("figcaption", tag("strong", title), f" {said}", legend)
    return tag("figure", caption, drawing, _numbers(series, x_label), class_="chart")


@dataclass(frozen=True)
class _Frame:
    """Where data coordinates lie in the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float
    log_y: bool

    def across(self, x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - self.x0) / (self.x1 - self.x0)

    def height(self, y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (y - self.y0) / (self.y1 - self.y0))

    def down(self, y: float) -> float:
        """Of a value, below the axis's foot drawn at its foot (an interval that reaches 0 on a log axis)."""
        shown = math.log10(y) if self.log_y and y > 0 else -math.inf if self.log_y else y
        return self.height(min(max(shown, self.y0), self.y1))


def _points(part: Series, log_y: bool) -> list[tuple[float, float]]:
    """What has to fit into the frame."""
    if isinstance(part, Line):
        pairs = [*zip(part.x, part.y, strict=True)]
    elif isinstance(part, Band):
        pairs = [*zip(part.edges[1:], part.high, strict=True), *zip(part.edges[:-1], part.low, strict=True)]
    else:
        # an interval's foot may be far down (0 on a log axis); the points themselves and the tops are what counts
        pairs = [*zip(part.x, part.y, strict=True), *zip(part.x, part.high, strict=True)]
    finite = [(float(x), float(y)) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    return [(x, math.log10(y)) for x, y in finite if y > 0] if log_y else finite


def _draw(part: Series, frame: _Frame) -> list[Markup]:
    look = f"s{part.look}"
    if isinstance(part, Line):
        kept = [(x, y) for x, y in zip(part.x, part.y, strict=True) if math.isfinite(y) and (y > 0 or not frame.log_y)]
        path = " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in kept)
        drawn = [tag("polyline", points=path, class_=f"line {look}")]
        if len(kept) == 1:
            drawn.append(
                tag(
                    "circle", cx=f"{frame.across(kept[0][0]):.1f}", cy=f"{frame.down(kept[0][1]):.1f}", r=3, class_=look
                )
            )
        return drawn
    if isinstance(part, Band):
        out = []
        for left, right, y, low, high in zip(part.edges, part.edges[1:], part.y, part.low, part.high, strict=False):
            x0, x1, top, foot = frame.across(left), frame.across(right), frame.down(high), frame.down(low)
            out += [
                tag(
                    "rect",
                    x=f"{x0:.1f}",
                    width=f"{x1 - x0:.1f}",
                    y=f"{top:.1f}",
                    height=f"{foot - top:.1f}",
                    class_=look,
                ),
                tag(
                    "line",
                    x1=f"{x0:.1f}",
                    x2=f"{x1:.1f}",
                    y1=f"{frame.down(y):.1f}",
                    y2=f"{frame.down(y):.1f}",
                    class_=look,
                ),
            ]
        return out
    out = []
    for x, y, low, high in zip(part.x, part.y, part.low, part.high, strict=True):
        at = f"{frame.across(x):.1f}"
        out += [
            tag("line", x1=at, x2=at, y1=f"{frame.down(low):.1f}", y2=f"{frame.down(high):.1f}", class_=look),
            tag("circle", cx=at, cy=f"{frame.down(y):.1f}", r=2.5, class_=look),
        ]
    return out


def _swatch(part: Series) -> Markup:
    look = f"s{part.look}"
    if isinstance(part, Line):
        inner = tag("line", x1=1, x2=27, y1=6, y2=6, class_=f"line {look}")
    elif isinstance(part, Band):
        inner = tag("rect", x=1, width=26, y=1, height=10, class_=look)
    else:
        inner = tag("circle", cx=14, cy=6, r=3, class_=look)
    return tag("svg", inner, viewBox="0 0 28 12", width=28, height=12, class_="swatch", aria_hidden="true")


def _numbers(series: Sequence[Series], x_label: str) -> Markup:
    """The chart's numbers, one table a series, closed at first."""
    tables = []
    for part in series:
        if isinstance(part, Line):
            head = [x_label, part.label]
            rows = [[f"{x:.6g}", f"{y:.6g}"] for x, y in zip(part.x, part.y, strict=True)]
        elif isinstance(part, Band):
            head = ["from", "to", part.label, "low", "high"]
            columns = zip(part.edges, part.edges[1:], part.y, part.low, part.high, strict=False)
            rows = [[f"{number:.5g}" for number in row] for row in columns]
        else:
            head = [x_label, part.label, "low", "high"]
            rows = [[f"{n:.5g}" for n in row] for row in zip(part.x, part.y, part.low, part.high, strict=True)]
        tables.append(table(head, rows))
    return tag("details", tag("summary", "numbers of this chart"), *tables, class_="inner")


def ticks(values: Sequence[float], count: int = 5, whole: bool = False) -> list[float]:
    """Round numbers, evenly spaced, that enclose all values; whole ones if asked."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / (count - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def power(exponent: float) -> str:
    """10^exponent in Unicode: 10⁻⁶."""
    return "10" + f"{exponent:.0f}".translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


# ------------------------------------------------------------------ pictures


def signed_picture(pixels: ArrayLike, *, alt: str, scale: float | None = None) -> Markup:
    """A small picture of signed numbers: blue below zero, white at zero, red above, full at +-`scale`."""
    found = np.asarray(pixels, dtype=np.float64)
    top = float(np.max(np.abs(found), initial=0.0)) if scale is None else scale
    level = np.clip(found / (top or 1.0), -1.0, 1.0)[..., None]
    red, white, blue = np.array([178.0, 24, 43]), np.array([247.0, 247, 247]), np.array([33.0, 102, 172])
    colour = np.where(level >= 0, white + level * (red - white), white - level * (blue - white))
    return _png(np.rint(colour).astype(np.uint8), alt)


def grey_picture(pixels: Array, *, alt: str) -> Markup:
    """A small picture of intensities in [0, 1], dark ink on white."""
    ink = np.rint(255 * (1 - np.clip(pixels, 0.0, 1.0))).astype(np.uint8)
    return _png(np.repeat(ink[..., None], 3, axis=-1), alt)


def _png(rgb: NDArray[np.uint8], alt: str) -> Markup:
    """An RGB array (height, width, 3) as an <img> whose source is the picture itself."""
    height, width, _ = rgb.shape
    raw = b"".join(b"\0" + row.tobytes() for row in rgb)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    size = min(48, max(12, 96 // max(width, 1)))  # of a pixel: at least 96 across, where that is not too coarse
    return tag("img", src=source, alt=alt, width=width * size, height=height * size, class_="pixels")
