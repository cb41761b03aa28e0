"""Pieces of a self-contained web page: escaped tags, a style sheet for light and dark, line charts as inline SVG, small
pictures as inline PNG. Nothing here knows what a loss tree is.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_VOID = {"meta", "img", "br"}  # of HTML; in SVG an element without content must be closed, or it swallows what follows


class Markup(str):
    """Text that is already HTML; every other string is escaped when it becomes a tag's content."""

    __slots__ = ()


def tag(name: str, *content: str | None, **attributes: str | float | bool | None) -> Markup:
    """One element. Content is escaped unless it is `Markup`; an attribute `class_` prints as class, `a_b` as a-b.

    >>> tag("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    text = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key.rstrip("_").replace("_", "-")
        text += f" {spelled}" if value is True else f' {spelled}="{escape(str(value))}"'
    if name in _VOID and not content:
        return Markup(f"<{name}{text}>")
    inner = "".join(part if isinstance(part, Markup) else escape(part, quote=False) for part in content if part)
    return Markup(f"<{name}{text}>{inner}</{name}>")


def join(parts: Sequence[str]) -> Markup:
    """Several pieces one after the other, each escaped unless it is `Markup`."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part, quote=False) for part in parts))


def page(title: str, *body: str) -> str:
    """A whole document: no script, no network, nothing outside this text."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        # An empty icon keeps browsers from asking a server for one.
        Markup('<link rel="icon" href="data:,">'),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Markup:
    """A table whose first column names the row; the others are set as numbers, right-aligned."""
    top = tag("thead", tag("tr", *[tag("th", cell, scope="col") for cell in head]))
    body = [tag("tr", tag("th", row[0], scope="row"), *[tag("td", cell) for cell in row[1:]]) for row in rows]
    return tag(
        "div", tag("table", tag("caption", caption) if caption else None, top, tag("tbody", *body)), class_="wide"
    )


def line_chart(x: Sequence[float], y: Sequence[float], *, title: str, x_label: str, y_label: str) -> Markup:
    """A line through the points (x, y), with ticks at round numbers, as inline SVG that takes the page's colours."""
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not points:
        return tag("p", f"{title}: no points.")
    width, height, left, bottom = 640.0, 300.0, 74.0, 46.0
    x_ticks, y_ticks = _ticks([p[0] for p in points]), _ticks([p[1] for p in points])
    x_span, y_span = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def across(value: float) -> float:
        return left + (width - left - 14) * (value - x_span[0]) / (x_span[1] - x_span[0])

    def down(value: float) -> float:
        return 12 + (height - bottom - 12) * (1 - (value - y_span[0]) / (y_span[1] - y_span[0]))

    parts = [tag("title", title)]
    for tick in y_ticks:
        parts += [
            tag("line", x1=left, x2=width - 14, y1=f"{down(tick):.1f}", y2=f"{down(tick):.1f}", class_="rule"),
            tag("text", f"{tick:.6g}", x=left - 8, y=f"{down(tick) + 4:.1f}", text_anchor="end"),
        ]
    for tick in x_ticks:
        parts.append(tag("text", f"{tick:.6g}", x=f"{across(tick):.1f}", y=height - bottom + 18, text_anchor="middle"))
    line = " ".join(f"{across(a):.1f},{down(b):.1f}" for a, b in points)
    parts += [
        tag("polyline", points=line, class_="line"),
        tag("circle", cx=f"{across(points[-1][0]):.1f}", cy=f"{down(points[-1][1]):.1f}", r=3.5, class_="dot"),
        tag("text", x_label, x=f"{(left + width) / 2:.0f}", y=height - 8, text_anchor="middle"),
        tag("text", y_label, x=4, y=-4),
    ]
    label = f"{title}: from {points[0][1]:.6g} to {points[-1][1]:.6g}"
    return tag(
        "svg", *parts, viewBox=f"0 -18 {width:.0f} {height + 18:.0f}", role="img", aria_label=label, class_="chart"
    )


def _ticks(values: Sequence[float], count: int = 5) -> list[float]:
    """Round numbers, evenly spaced, that enclose all values."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / (count - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def signed_picture(pixels: Array, *, alt: str, scale: float | None = None) -> Markup:
    """A small picture of signed numbers: blue below zero, white at zero, red above, full at +-`scale`."""
    top = float(np.max(np.abs(pixels))) if scale is None else scale
    level = np.clip(pixels / (top or 1.0), -1.0, 1.0)[..., None]
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
    return tag("img", src=source, alt=alt, width=width * 12, height=height * 12, class_="pixels")


STYLE = """
:root { --ink: #1d2328; --soft: #5b6670; --paper: #fdfdfc; --panel: #f2f4f5; --rule: #d5dade; --mark: #0b62a8;
  --warn: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3adb6; --paper: #14181b; --panel: #1e2428;
  --rule: #39424a; --mark: #6cb6f5; --warn: #f0a274; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; } .soft { color: var(--soft); } .big { font-size: 1.15rem; }
code, pre, .number { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .875em; }
pre { background: var(--panel); padding: .75rem; overflow-x: auto; border-radius: 6px; margin: .5rem 0; }
.wide, .formula { overflow-x: auto; } .formula { padding: .6rem 0; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; } th[scope=row] { white-space: pre; }
details { border-left: 2px solid var(--rule); padding-left: .8rem; margin: .3rem 0; }
details.inner { border-left-style: dotted; }
summary { cursor: pointer; padding: .25rem 0; } summary:focus-visible { outline: 2px solid var(--mark); }
summary .name { font-weight: 650; color: var(--mark); display: inline-block; min-width: 2.2rem; }
summary .number { display: inline-block; margin-right: .9rem; } .warn { color: var(--warn); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .4rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .82rem; color: var(--soft); overflow-wrap: anywhere; }
img.pixels { image-rendering: pixelated; border: 1px solid var(--rule); max-width: 100%; height: auto; }
svg.chart { width: 100%; height: auto; max-width: 42rem; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .rule { stroke: var(--rule); } svg .dot { fill: var(--mark); }
svg .line { fill: none; stroke: var(--mark); stroke-width: 2; }
math { font-size: 1.05em; }
@media (max-width: 34rem) { body { font-size: 15px; } dl { grid-template-columns: 1fr; } dt { margin-top: .3rem; }
  details { padding-left: .5rem; } }
"""
