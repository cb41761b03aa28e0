"""The HTML report: complete, well formed, and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree import report_laws
from elbotree.charts import Band, Dots, Line, chart, grey_picture, signed_picture
from elbotree.html import COLOURS, page, table, tag
from elbotree.report import ChainPage, Page
from elbotree.report_laws import interval, read_out
from elbotree.runtime.training import Step
from elbotree.runtime.values import CHILDREN, NAMES

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects elements with their open ancestors, and refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.elements.append((name, found, [outer_name for outer_name, _ in self.open]))
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
    nodes = [
        (str(a["id"]), outer.count("ul")) for name, a, outer in reader.elements if str(a.get("id")).startswith("term-")
    ]
    depth = dict(nodes)
    assert sorted(depth) == sorted(f"term-{name}" for name in NAMES)
    last: dict[int, str] = {}
    for name, level in nodes:
        last[level] = name
        if name != "term-L":
            assert last[level - 1] == f"term-{parents[name.removeprefix('term-')]}"
    assert len(reader.named("math")) == 12
    text = "".join(reader.words)
    for name in NAMES:
        assert f"{content.values[name].value:.8g}" in text
        assert f"def {name}(" in text
    assert "sampled" in text
    assert text.count("cost") >= 12
    assert f"{content.values.share('T2'):.1%}" in text


def test_nothing_is_fetched_and_nothing_runs(content: Page) -> None:
    reader = Reader(content.render())
    assert not reader.named("script")
    addresses = [a[key] for _, a, _ in reader.elements for key in ("src", "href", "action") if a.get(key)]
    assert addresses
    assert all(str(address).startswith(("data:", "#")) for address in addresses)
    assert set(re.findall(r"https?://[^\s\"<]+", content.render())) == {"http://www.w3.org/1998/Math/MathML"}


def test_the_page_is_for_phones_dark_mode_and_screen_readers(content: Page) -> None:
    text = content.render()
    reader = Reader(text)
    assert reader.named("html")[0]["lang"] == "en"
    assert {"viewport", "color-scheme"} <= {str(a.get("name")) for a in reader.named("meta")}
    assert "prefers-color-scheme: dark" in text
    assert all(a.get("alt") for a in reader.named("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in reader.named("svg"))
    assert all(a.get("scope") in ("col", "row") for a in reader.named("th"))


def test_user_text_is_escaped(content: Page) -> None:
    assert "<title>A &lt;title&gt; &amp; more</title>" in content.render()
    assert "One &amp; only" in content.render()


def test_training_is_drawn_only_where_there_was_some(content: Page) -> None:
    assert len(Reader(content.render()).named("polyline")) == 3
    bare = Page("t", content.problem, content.values)
    assert not Reader(bare.render()).named("svg")


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", COLOURS)
@pytest.mark.parametrize("ground", ["paper", "panel"])
@pytest.mark.parametrize("name", ["ink", "soft", "mark", "warn", "second", "third", "fourth"])
def test_contrast_meets_wcag_aa(scheme: str, ground: str, name: str) -> None:
    """4.5 to 1 for text; curves would need 3 to 1 and get as much."""
    light, dark = sorted((luminance(COLOURS[scheme][key]) for key in (name, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_colours_stand_in_the_style_sheet_and_nowhere_else(content: Page) -> None:
    style = content.render().split("<style>")[1].split("</style>")[0]
    listed = {colour for colours in COLOURS.values() for colour in colours.values()}
    assert set(re.findall(r"#[0-9a-f]{6}", style)) == listed
    assert set(re.findall(r"var\(--(\w+)\)", style)) <= set(COLOURS["light"])
    assert set(COLOURS["light"]) == set(COLOURS["dark"])


def test_read_outs_bins_and_tails_are_those_of_the_law() -> None:
    law = et.FeatureModel([[1.0]], [et.Normal(1.0, 2.0)], 1.5).marginal([1.0])  # N(1, 2.5^2)
    rows = np.random.default_rng(0).normal(1.0, 2.5, 50_000)
    one = read_out("x", {"law": law, "other": law}, rows)
    centres = (one.edges[:-1] + one.edges[1:]) / 2
    expected = np.exp(-((centres - 1) ** 2) / 12.5) / np.sqrt(2 * np.pi * 6.25)
    np.testing.assert_allclose(one.densities["law"], expected, atol=2e-3)
    assert np.sum(one.densities["law"] * np.diff(one.edges)) == pytest.approx(1 - 2e-4, abs=1e-6)
    assert one.tails["law"][0] == pytest.approx(0.5, abs=1e-3)
    assert one.tails["law"][-1] == pytest.approx(1e-15, rel=1e-2)
    text = "".join(report_laws.section([one]))
    inside = int(re.findall(r"band in (\d+) of 40 bins", text)[0])
    assert 34 <= inside <= 40
    assert "differs from it by 0.000 in total variation" in text
    shifted = "".join(report_laws.section([read_out("x", {"law": law}, rows + 1.0)]))
    assert int(re.findall(r"band in (\d+) of 40 bins", shifted)[0]) < 20


def test_a_unit_that_is_off_half_the_time_is_drawn_with_its_atom() -> None:
    """relu(b), b ~ N(0, 1), written to a coordinate of its own: half the mass stands at 0."""
    layer = et.Layer(np.eye(2, 1), [0.0, 1.0], [1.0, 0.0], "relu")
    law = et.joint(layer, et.FeatureModel([[0.0]], [et.Normal(0.0, 1.0)], 1.0), [0.0, 1.0])
    rows = np.maximum(np.random.default_rng(0).normal(size=20_000), 0.0)
    one = read_out("unit", {"law": law}, rows)
    assert one.note == ""
    width = one.edges[1] - one.edges[0]
    assert -width < one.edges[0] < 0
    expected = 0.5 + width * np.exp(0) / np.sqrt(2 * np.pi)
    assert one.densities["law"][0] * width == pytest.approx(expected, abs=0.02)
    assert one.tails["law"][-1] == pytest.approx(1e-15, rel=1e-2)
    text = "".join(report_laws.section([one]))
    assert int(re.findall(r"band in (\d+) of 24 bins", text)[0]) >= 19


def test_a_law_without_noise_says_why_it_is_not_drawn() -> None:
    law = et.FeatureModel([[1.0]], [et.Bernoulli(0.5)], 0.0).marginal([1.0])
    one = read_out("x", {"law": law}, None)
    assert "noise" in one.note
    assert "Not drawn: " in "".join(report_laws.section([one]))


def test_intervals_of_frequencies_cover_and_stay_within_0_and_1() -> None:
    low, high = interval(np.array([0.0, 50.0, 100.0]), 100)
    assert 0.0 <= low[0] < 1e-15
    assert 0.03 < high[0] < 0.05
    np.testing.assert_allclose([low[1], high[1]], 0.5 + np.array([-1, 1]) * 2 / np.sqrt(104) / 2, rtol=1e-12)
    assert high[2] == pytest.approx(1.0)


def test_the_page_of_a_chain_shows_drift_layers_and_laws(tmp_path: Path) -> None:
    layers = et.compile_network([([[1.0, -0.5], [0.4, 0.8]], [0.1, -0.2], "relu"), ([[1.0, 1.0]], None, None)])
    p1 = et.FeatureModel(np.eye(2), [et.Bernoulli(0.3), et.Normal(0.0, 1.0)], 0.3)
    chain = et.fit_network(layers, p1, check_samples=500)
    written = et.write_report(tmp_path / "c.html", chain, "My <chain>", check_samples=500)
    reader = Reader(written.read_text(encoding="utf-8"))
    assert [a["id"] for a in reader.named("details") if str(a.get("id")).startswith("layer-")] == [
        f"layer-{i + 1}" for i in range(len(layers))
    ]
    words = "".join(reader.words)
    assert all(str(drift) in words for drift in chain.drift)
    assert "Wasserstein-1" in words
    assert {str(a["id"]) for a in reader.named("details") if a.get("id")} >= {f"term-{name}" for name in NAMES}
    assert len(reader.named("math")) == 12
    assert "def T3(" in words
    assert len([a for a in reader.named("svg") if a.get("role") == "img"]) >= 3
    unmeasured = ChainPage("c", et.fit_network(layers, p1)).render()
    assert "Drift was not measured" in unmeasured
    assert not Reader(unmeasured).named("svg")


def test_the_twelve_terms_of_every_trained_layer_are_shown() -> None:
    layers = [et.Layer(np.eye(1), [1.0], [1.0], psi) for psi in ("tanh", "relu")]
    affine = et.Layer([[2.0]], [0.0], [1.0])
    p1 = et.FeatureModel([[1.0]], [et.Laplace(0.0, 1.0)], 0.5)
    chain = et.fit_network([*layers, affine], p1, iterations=2, tol=1e-2, check_samples=500)
    text = ChainPage("c", chain).render()
    assert "gap to the best Gaussian" in text
    assert "against samples of the network" in text
    reader = Reader(text)
    assert {"href": "#term-L"} in reader.named("a")
    assert len(reader.named("math")) == 12  # formulas stand once
    words = "".join(reader.words)
    for loss in chain.losses[:2]:
        assert loss is not None, chain.notes
        for name in NAMES:
            assert f"{loss.values[name]:.10g}" in words
            assert f"{loss.errors[name]:.1e}" in words
    assert chain.losses[2] is None
    assert words.count("The twelve terms after") == 2
    closed = ChainPage("c", et.fit_network(layers, p1)).render()
    assert closed.count("Made in closed form, without training") == 2


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
    drawn = chart([Line("l", [1, 2, 3], [10.0, 14.0, 11.0])], title="t", x_label="x", y_label="y", said="It rises.")
    assert [float(x) for x in re.findall(r'text-anchor="end">([-\d.]+)<', drawn)] == [10, 11, 12, 13, 14]
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', drawn)[0].split()]
    assert [p[0] for p in points] == sorted(p[0] for p in points)
    assert min(range(3), key=lambda k: points[k][1]) == 1
    assert 'aria-label="t: y over x. It rises."' in drawn
    nothing = chart([Line("l", [1.0], [float("nan")])], title="t", x_label="x", y_label="y", said="")
    assert "nothing to draw" in nothing
    flat = chart([Line("l", [1.0, 2.0], [3.0, 3.0])], title="t", x_label="x", y_label="y", said="")
    assert "polyline" in flat


def test_a_log_axis_has_powers_of_ten_and_leaves_out_zeros() -> None:
    series = [Line("l", [0.0, 1.0, 2.0], [1.0, 1e-6, 0.0]), Dots("d", [1.0], [1e-3], [0.0], [1e-2], 2)]
    drawn = chart(series, title="t", x_label="x", y_label="y", said="", log_y=True)
    assert {"10⁰", "10⁻²", "10⁻⁴", "10⁻⁶"} <= set(re.findall(r">(10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)<", drawn))
    assert len(re.findall(r'points="([^"]*)"', drawn)[0].split()) == 2
    bottom = max(float(y) for y in re.findall(r'y1="([\d.]+)" y2="[\d.]+" class="s2"', drawn))
    assert bottom == pytest.approx(max(float(y) for y in re.findall(r'y2="([\d.]+)" class="rule"', drawn)))


def test_a_band_is_drawn_between_its_edges_and_listed() -> None:
    band = Band("b", [0.0, 1.0, 3.0], [2.0, 1.0], [1.0, 0.5], [3.0, 1.5])
    drawn = chart([band], title="t", x_label="x", y_label="y", said="")
    boxes = re.findall(r'<rect x="([\d.]+)" width="([\d.]+)" y="([\d.]+)" height="([\d.]+)"', drawn)
    assert float(boxes[1][1]) == pytest.approx(2 * float(boxes[0][1]), abs=0.2)
    assert float(boxes[0][3]) == pytest.approx(2 * float(boxes[1][3]), abs=0.2)
    assert [a.get("scope") for a in Reader(page("t", drawn)).named("th")].count("row") == 2


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
