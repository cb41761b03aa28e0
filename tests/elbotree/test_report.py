"""The HTML report: complete, well formed, and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree.html import grey_picture, line_chart, page, signed_picture, table, tag
from elbotree.report import Page
from elbotree.runtime.training import Step
from elbotree.runtime.values import CHILDREN, NAMES

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects elements with their open ancestors, and refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.elements.append(
            (name, found, [outer.get("id") for outer_name, outer in self.open if outer_name == "details"])
        )
        if name not in VOID:
            self.open.append((name, found))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop()[0] == name

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes, _ in self.elements if found == name]


@pytest.fixture
def content(form: dict[str, Any]) -> Page:
    problem = et.Problem.from_dict(form)
    values = et.evaluate(problem, tol=1e-4, check_samples=500)
    history = [Step(k + 1, 5.0 - 0.1 * k, 1e-4, 10.0**-k, 0.5, 1e-4, 0.5 * k) for k in range(4)]
    pictures = [signed_picture(column.reshape(1, 2), alt="a column") for column in problem.model.B.T]
    return Page("A <title> & more", problem, values, history, values, ["One & only"], pictures)


def test_all_twelve_nodes_nest_like_the_tree_and_show_formula_value_and_kernel(content: Page) -> None:
    reader = Reader(content.render())
    parents = {child: parent for parent, children in CHILDREN.items() for child in children}
    places = {str(a["id"]): outer for name, a, outer in reader.elements if name == "details" and a.get("id")}
    assert sorted(places) == sorted(f"term-{name}" for name in NAMES)
    for name in NAMES[1:]:
        assert places[f"term-{name}"][-1] == f"term-{parents[name]}"
    assert len(reader.named("math")) == 12
    text = "".join(reader.words)
    for name in NAMES:
        assert f"{content.values[name].value:.8g}" in text
        assert f"def {name}(" in text
    assert "sampled" in text


def test_nothing_is_fetched_and_nothing_runs(content: Page) -> None:
    reader = Reader(content.render())
    assert not reader.named("script")
    addresses = [a[key] for _, a, _ in reader.elements for key in ("src", "href", "action") if a.get(key)]
    assert addresses
    assert all(str(address).startswith("data:") for address in addresses)
    assert set(re.findall(r"https?://[^\s\"<]+", content.render())) == {"http://www.w3.org/1998/Math/MathML"}


def test_the_page_is_for_phones_dark_mode_and_screen_readers(content: Page) -> None:
    text = content.render()
    reader = Reader(text)
    assert reader.named("html")[0]["lang"] == "en"
    assert {"viewport", "color-scheme"} <= {str(a.get("name")) for a in reader.named("meta")}
    assert "prefers-color-scheme: dark" in text
    assert all(a.get("alt") for a in reader.named("img"))
    assert all(a.get("aria-label") for a in reader.named("svg"))
    assert all(a.get("scope") in ("col", "row") for a in reader.named("th"))


def test_user_text_is_escaped(content: Page) -> None:
    assert "<title>A &lt;title&gt; &amp; more</title>" in content.render()
    assert "One &amp; only" in content.render()


def test_training_is_drawn_only_where_there_was_some(content: Page) -> None:
    assert len(Reader(content.render()).named("polyline")) == 2
    bare = Page("t", content.problem, content.values)
    assert not Reader(bare.render()).named("svg")


def test_write_report_is_whole_or_not_at_all(content: Page, tmp_path: Path) -> None:
    written = et.write_report(tmp_path / "r.html", content)
    assert written.read_text(encoding="utf-8") == content.render()
    with pytest.raises(et.InputError, match="cannot be written"):
        et.write_report(tmp_path / "none" / "r.html", content)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_tags_escape_content_and_attributes() -> None:
    assert tag("p", 'a < b & "c"', title='"x"') == '<p title="&quot;x&quot;">a &lt; b &amp; "c"</p>'
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert tag("details", open=True, class_="a", hidden=False) == '<details open class="a"></details>'


def test_a_chart_spans_its_data_with_round_ticks() -> None:
    chart = line_chart([1, 2, 3], [10.0, 14.0, 11.0], title="t", x_label="x", y_label="y")
    assert [float(x) for x in re.findall(r'text-anchor="end">([-\d.]+)<', chart)] == [10, 11, 12, 13, 14]
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', chart)[0].split()]
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert min(range(3), key=lambda k: points[k][1]) == 1
    assert "no points" in line_chart([1.0], [float("nan")], title="t", x_label="x", y_label="y")
    assert "polyline" in line_chart([1.0, 2.0], [3.0, 3.0], title="t", x_label="x", y_label="y")


def test_pictures_are_png_with_the_colours_asked_for() -> None:
    pixels = decode(signed_picture(np.array([[-2.0, 0.0, 2.0]]), alt="p"))
    assert pixels.tolist() == [[[33, 102, 172], [247, 247, 247], [178, 24, 43]]]
    assert decode(grey_picture(np.array([[0.0], [1.0]]), alt="p")).tolist() == [[[255] * 3], [[0] * 3]]


def decode(markup: str) -> np.ndarray[Any, Any]:
    """The pixels of an <img>, by the little of PNG that these pictures use."""
    import base64
    import struct
    import zlib

    raw = base64.b64decode(re.findall(r"base64,([^\"]+)", markup)[0])
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, colour = struct.unpack(">IIBB", raw[16:26])
    assert (depth, colour) == (8, 2)
    start = raw.index(b"IDAT")
    size = struct.unpack(">I", raw[start - 4 : start])[0]
    lines = np.frombuffer(zlib.decompress(raw[start + 4 : start + 4 + size]), dtype=np.uint8).reshape(
        height, 1 + 3 * width
    )
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


def test_tables_name_their_rows_and_pages_nest() -> None:
    text = page("t", table(["a", "b"], [["x", "1"]], "note"))
    reader = Reader(text)
    assert [a.get("scope") for a in reader.named("th")] == ["col", "col", "row"]
    assert "note" in "".join(reader.words)
