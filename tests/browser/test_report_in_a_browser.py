"""The report in a real browser: Debian's chromium, headless, driven by selenium (the extra `browser-test`). Skipped, with the
reason, where either is missing; `make browser` runs it. With ELBOTREE_SCREENSHOTS=folder each page leaves its pictures.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree import report_laws
from elbotree.report import Page
from elbotree.runtime.training import Step
from elbotree.runtime.values import NAMES

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install 'elbotree[browser-test]'"
)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium with its driver: apt-get install chromium chromium-driver"
    ),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def problem() -> et.Problem:
    layer = et.Layer([[1.0, 0.2], [0.0, 0.9]], [0.3, -0.6], [0.8, 0.5], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0, 0.2], [-0.3, 1.1]], [et.Bernoulli(0.3), et.Normal(0.0, 0.7)], 0.5)
    model = et.FeatureModel([[1.0, 0.1], [0.2, 0.8]], [et.Bernoulli(0.4), et.Normal(0.0, 1.0)], 0.6)
    encoder = [et.Posterior("bernoulli", [[1.5, 0.2]], [-0.4]), et.Posterior("normal", [[0.1, 0.7]], std=0.5)]
    return et.Problem(layer, p1, model, et.Encoder(encoder))


@pytest.fixture(scope="module")
def fitted(problem: et.Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = et.evaluate(problem, tol=1e-5, check_samples=20_000)
    history = [
        Step(k + 1, 3.0 + 2.0 * 0.6**k, 1e-4, 10.0 ** (-k / 3), 0.6 - 0.01 * k, 1e-4, 0.5 * k) for k in range(12)
    ]
    laws = report_laws.of_problem(problem, 20_000, 0)
    page = Page("A fitted layer", problem, values, history, intro=["made for the test"], read_outs=laws)
    return et.write_report(tmp_path_factory.mktemp("fit") / "fit.html", page)


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    dense = [
        (rng.standard_normal((4, 3)) / 2, rng.standard_normal(4) / 3, "relu"),
        (rng.standard_normal((2, 4)), None, None),
    ]
    p1 = et.FeatureModel(np.eye(3), [et.Bernoulli(0.2), et.Laplace(0.0, 1.0), et.Normal(0.0, 1.0)], 0.2)
    layers = et.compile_network(dense)
    chain = et.fit_network(layers, p1, check_samples=2_000, iterations=1, features=3, tol=2e-2)
    return et.write_report(tmp_path_factory.mktemp("chain") / "chain.html", chain, check_samples=5_000)


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `elbotree derive --format html`."""
    page = tmp_path_factory.mktemp("proof") / "proof.html"
    page.write_text(et.derive().proof_html(), encoding="utf-8")
    return page


def show(browser: Any, page: Path, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
    """Open the page in a window of that size, in light or dark."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get(page.as_uri())
    keep(browser, f"{page.stem}-{width}{'-dark' if dark else ''}")


def keep(browser: Any, name: str) -> None:
    """A picture of the whole page, if anyone wants to look."""
    folder = os.environ.get("ELBOTREE_SCREENSHOTS")
    if folder:
        import base64

        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(browser: Any) -> list[str]:
    """Addresses on a network that anything asked for since the last call."""
    import json

    seen = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in seen if m["method"] == "Network.requestWillBeSent"]
    return [address for address in asked if address.startswith(("http:", "https:", "ws:", "wss:", "ftp:"))]


def find(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


@pytest.mark.parametrize("which", ["fitted", "chained", "proof"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_fetched_nothing_complains_and_nothing_overflows(
    browser: Any, request: pytest.FixtureRequest, which: str, size: tuple[int, int], dark: bool
) -> None:
    requests(browser), complaints(browser)  # what other pages left in the logs
    show(browser, request.getfixturevalue(which), size, dark)
    assert complaints(browser) == []
    assert requests(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(",")) < 200) == dark


def test_all_twelve_nodes_open_to_their_formula_value_and_kernel(
    browser: Any, fitted: Path, problem: et.Problem
) -> None:
    show(browser, fitted)
    values = et.evaluate(problem, tol=1e-5)
    for name in NAMES:
        (node,) = find(browser, f"#term-{name}")
        assert node.find_element("css selector", "summary").is_displayed()
        assert node.get_attribute("open") is None
        node.find_element("css selector", "summary").click()
        assert f"{values[name].value:.5g}"[:-1] in node.find_element("css selector", "summary").text
        formula = node.find_element("css selector", ":scope > .formula math")
        assert formula.is_displayed()
        assert formula.size["height"] > 8  # MathML is drawn, not skipped
        overflow = "return arguments[0].scrollHeight - arguments[0].clientHeight"
        assert browser.execute_script(overflow, formula.find_element("xpath", "..")) <= 0
        kernel = node.find_element("css selector", ":scope > details.inner")
        assert not kernel.find_element("css selector", "pre").is_displayed()
        kernel.find_element("css selector", "summary").click()
        assert f"def {name}(" in kernel.find_element("css selector", "pre").text
    keep(browser, "fit-open")


def test_a_node_opens_and_closes_by_keyboard(browser: Any, fitted: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    show(browser, fitted)
    reached: list[str] = []
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focus = browser.switch_to.active_element
        parent = focus.find_element("xpath", "..").get_attribute("id") if focus.tag_name == "summary" else ""
        reached.append(parent or focus.tag_name)
        if parent == "term-T2":
            break
    assert reached[-1] == "term-T2", reached
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    (node,) = find(browser, "#term-T2")
    for key, expected in ((Keys.ENTER, True), (Keys.SPACE, False), (Keys.SPACE, True)):
        ActionChains(browser).send_keys(key).perform()
        assert (node.get_attribute("open") is not None) == expected


def spoken(browser: Any) -> list[tuple[str, str]]:
    """(role, name) of everything in the accessibility tree, once the browser has made it (it does so when it has time)."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_cdp_cmd("Accessibility.enable", {})

    def made(_: Any) -> list[tuple[str, str]]:
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        told = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n.get("ignored")]
        return told if any(role == "main" for role, _ in told) else []

    return WebDriverWait(browser, 30, ignored_exceptions=[WebDriverException]).until(made)


@pytest.mark.parametrize("which", ["fitted", "chained"])
def test_a_screen_reader_finds_headings_landmarks_and_words_for_every_picture(
    browser: Any, request: pytest.FixtureRequest, which: str
) -> None:
    show(browser, request.getfixturevalue(which))
    told = spoken(browser)
    roles = {role for role, _ in told}
    assert {"main", "navigation", "heading", "region", "list", "listitem"} <= roles
    unnamed = [
        role for role, name in told if role in ("image", "img", "graphics-document", "region", "link") and not name
    ]
    assert unnamed == []
    charts = find(browser, "svg[role=img]")
    assert charts
    assert all(len(one.get_attribute("aria-label")) > 30 for one in charts)
    levels = [int(h.tag_name[1]) for h in find(browser, "h1, h2, h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_links_of_the_contents_lead_to_sections(browser: Any, fitted: Path) -> None:
    show(browser, fitted)
    for link in find(browser, "nav a"):
        (target,) = find(browser, link.get_attribute("hash"))
        assert target.text == link.text


def test_charts_show_their_numbers_when_asked(browser: Any, chained: Path) -> None:
    show(browser, chained)
    (drawn, *_) = find(browser, "figure.chart")
    drawn.find_element("css selector", "summary").click()
    assert len(drawn.find_elements("css selector", "tbody tr")) >= 4
    assert drawn.find_element("css selector", "td").is_displayed()


def test_a_layer_opens_to_its_twelve_terms_and_leads_to_their_formulas(browser: Any, chained: Path) -> None:
    show(browser, chained)
    (layer,) = find(browser, "#layer-1")
    layer.find_element("css selector", "summary").click()
    rows = layer.find_elements("css selector", "table:first-of-type tbody tr")[:12]
    assert {row.find_element("css selector", "th").text.strip("│├└─ ") for row in rows} == set(NAMES)
    assert all(row.is_displayed() and row.find_element("css selector", "td").text for row in rows)
    keep(browser, "chain-open")
    link = layer.find_element("css selector", "a[href='#term-L']")
    link.click()
    (formula,) = find(browser, "#term-L")
    assert browser.execute_script("return arguments[0].getBoundingClientRect().top", formula) < DESKTOP[1]
