"""Pieces of a self-contained web page: escaped tags, tables, a style sheet for light and dark. Charts and pictures are
`elbotree.charts`'s. Nothing here knows what a loss tree is.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

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
    """A table whose first column names the row; the others are set as numbers, right-aligned. Where it is too wide for the
    screen it scrolls alone, by keyboard too."""
    top = tag("thead", tag("tr", *[tag("th", cell, scope="col") for cell in head]))
    body = [tag("tr", tag("th", row[0], scope="row"), *[tag("td", cell) for cell in row[1:]]) for row in rows]
    inner = tag("table", tag("caption", caption) if caption else None, top, tag("tbody", *body))
    return tag("div", inner, class_="wide", tabindex=0, role="region", aria_label=caption or ", ".join(head))


#: Colours by name, light and dark; tests/elbotree/test_report.py computes their contrast.
COLOURS = {
    "light": {
        "ink": "#1d2328",
        "soft": "#56616b",
        "paper": "#fdfdfc",
        "panel": "#f2f4f5",
        "rule": "#d5dade",
        "mark": "#0b62a8",
        "second": "#b3410a",
        "third": "#2c7a3f",
        "fourth": "#7a3fa0",
        "warn": "#9a3412",
    },
    "dark": {
        "ink": "#e6e9ec",
        "soft": "#a3adb6",
        "paper": "#14181b",
        "panel": "#1e2428",
        "rule": "#39424a",
        "mark": "#6cb6f5",
        "second": "#f0a274",
        "third": "#7fcf94",
        "fourth": "#c9a0ee",
        "warn": "#f0a274",
    },
}


def _variables(colours: dict[str, str]) -> str:
    return ":root { " + " ".join(f"--{name}: {colour};" for name, colour in colours.items()) + " }"


STYLE = (
    f"""
{_variables(COLOURS["light"])}
@media (prefers-color-scheme: dark) {{ {_variables(COLOURS["dark"])} }}
"""
    + """* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; } .soft { color: var(--soft); } .big { font-size: 1.15rem; }
a { color: var(--mark); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
code, pre, .number { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .875em; }
pre { background: var(--panel); padding: .75rem; overflow-x: auto; border-radius: 6px; margin: .5rem 0; }
.wide, .formula { overflow-x: auto; } .formula { padding: .6rem 0; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; } th[scope=row] { white-space: pre; }
details { border-left: 2px solid var(--rule); padding-left: .8rem; margin: .3rem 0; }
details.inner { border-left-style: dotted; }
summary { cursor: pointer; padding: .25rem 0; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
summary .name { font-weight: 650; color: var(--mark); display: inline-block; min-width: 2.2rem; }
ul.tree, ul.tree ul { list-style: none; margin: 0; padding: 0; } ul.tree ul { padding-left: 1.6rem; }
ul.tree ul > li { border-left: 2px solid var(--rule); padding-left: .5rem; } ul.tree details { border: 0; padding: 0; }
ul.tree details > :not(summary) { margin-left: 1rem; } ul.tree details.inner > :not(summary) { margin-left: 0; }
.bars { display: inline-block; width: 6rem; margin-right: .6rem; } .number.share { min-width: 3.6rem; text-align: right; }
.bar { display: inline-block; height: .6rem; background: var(--mark); } .bar.less { background: var(--second); }
summary .number { display: inline-block; margin-right: .9rem; } .warn { color: var(--warn); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .4rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .82rem; color: var(--soft); overflow-wrap: anywhere; }
figure.chart figcaption { font-size: .9rem; } figcaption strong { color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; color: var(--ink); }
img.pixels { image-rendering: pixelated; border: 1px solid var(--rule); max-width: 100%; height: auto; min-height: 12px; }
svg.chart { width: 100%; height: auto; max-width: 36rem; font: 14px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .rule { stroke: var(--rule); } svg .line { fill: none; stroke-width: 2; }
svg .s0 { stroke: var(--mark); } svg .s1 { stroke: var(--second); } svg .s2 { stroke: var(--third); }
svg .s3 { stroke: var(--fourth); } svg .line.s1 { stroke-dasharray: 7 4; } svg .line.s2 { stroke-dasharray: 2 3; }
svg .line.s3 { stroke-dasharray: 9 3 2 3; }
svg .s4 { stroke: var(--soft); } svg .line.s4 { stroke-width: 1; stroke-dasharray: 1 4; }
svg rect { fill-opacity: .3; stroke: none; }
svg rect.s0, svg circle.s0 { fill: var(--mark); } svg rect.s1, svg circle.s1 { fill: var(--second); }
svg rect.s2, svg circle.s2 { fill: var(--third); } svg rect.s3, svg circle.s3 { fill: var(--fourth); }
svg rect.s0, svg rect.s1, svg rect.s2, svg rect.s3 { stroke: none; }
math { font-size: 1.05em; }
@media (max-width: 34rem) { body { font-size: 15px; } dl { grid-template-columns: 1fr; } dt { margin-top: .3rem; }
  details { padding-left: .5rem; } ul.tree ul { padding-left: .5rem; } .bars { display: none; }
  main { padding: .5rem .75rem 3rem; } }
"""
)
