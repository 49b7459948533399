"""The report of a real run in headless Chromium: figures, themes, hovering, a phone, no script."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICKSTART
from helpers_report import large_run
from typer.testing import CliRunner

from flwr_dmml.cli import app

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")

SETTINGS = [
    "num-server-rounds=6",
    "local-iterations=2",
    "samples-per-node=60",
    "evaluate-every=2",
    "device=cpu",
    "compare-with=dpsgd",
    "method=dmml-kd",
    "dmml-kd.generator-steps=2",
]


@dataclass
class Opened:
    """A page, and what it complained of or asked the network for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of the quickstart on six devices, and a large run of made-up numbers."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        own = [*SETTINGS, f"seed={seed}", f"run-dir={folder}", f"run-name=seed-{seed}"]
        settings = [part for setting in own for part in ("--set", setting)]
        simulate = ["simulate", str(QUICKSTART), "--nodes", "6", "--workers", "0", *settings]
        done = CliRunner().invoke(app, simulate)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    done = CliRunner().invoke(app, ["report", str(runs / "seed-0")])
    assert done.exit_code == 0, done.output
    return runs / "seed-0" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = str(tmp_path_factory.mktemp("home"))  # for its crash reports
    places = {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], env={**os.environ, **places}
        )
        yield chromium
        chromium.close()


def open_page(browser: Any, path: Path, *, scripts: bool = True, **context: Any) -> Opened:
    """Open a page; with scripts, wait until all figures are drawn."""
    page = browser.new_context(java_script_enabled=scripts, **context).new_page()
    opened = Opened(page)
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("console", lambda m: opened.errors.append(m.text) if m.type != "log" else None)
    page.on("request", lambda r: opened.requests.append(r.url))
    page.goto(path.as_uri())
    if scripts:
        page.wait_for_selector("html[data-drawn=true]", timeout=120_000)
    return opened


def shot(opened: Opened, name: str) -> None:
    """Keep a picture of the page where a person asks for one."""
    if folder := os.environ.get("REPORT_SCREENSHOTS"):
        opened.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def drawn(page: Any) -> tuple[int, int]:
    """Return how many figures there are, and in how many plotly has drawn something to see."""
    script = """() => {
        const places = [...document.querySelectorAll('[data-figure]')];
        const marks = '.scatterlayer path, .barlayer path, .heatmaplayer image';
        const seen = (place) => place.querySelector('.main-svg') && place.querySelector(marks);
        return [places.length, places.filter(seen).length];
    }"""
    places, seen = page.evaluate(script)
    return places, seen


def background(page: Any) -> str:
    return str(page.eval_on_selector(".main-svg", "e => getComputedStyle(e).backgroundColor"))


def test_every_figure_is_drawn_without_a_complaint(browser: Any, report: Path) -> None:
    opened = open_page(browser, report, viewport={"width": 1280, "height": 900})
    places, seen = drawn(opened.page)
    assert places == seen >= 12
    assert opened.errors == []
    wanted = {url for url in opened.requests if not url.startswith(("data:", "blob:"))}
    assert wanted == {report.as_uri()}
    shot(opened, "light")


def test_the_theme_switch_changes_page_and_figures(browser: Any, report: Path) -> None:
    opened = open_page(browser, report, color_scheme="light")
    page = opened.page
    assert background(page) == "rgb(255, 255, 255)"
    page.click("#theme")
    page.wait_for_function(
        "getComputedStyle(document.querySelector('.main-svg')).backgroundColor === "
        "'rgb(26, 32, 41)'"
    )
    assert page.inner_text("#theme") == "Light theme"
    assert page.eval_on_selector("section", "e => getComputedStyle(e).backgroundColor") == (
        "rgb(26, 32, 41)"
    )
    places, seen = drawn(page)
    assert places == seen and opened.errors == []
    shot(opened, "switched-to-dark")


def test_the_theme_of_the_system_is_taken(browser: Any, report: Path) -> None:
    opened = open_page(
        browser, report, color_scheme="dark", viewport={"width": 1280, "height": 900}
    )
    assert background(opened.page) == "rgb(26, 32, 41)"
    assert opened.page.inner_text("#theme") == "Light theme"
    shot(opened, "dark")


def test_hovering_shows_a_label(browser: Any, report: Path) -> None:
    """Over the first point of a mean: its value, the round, and the method (both may lie there)."""
    page = open_page(browser, report).page
    place = page.locator("[data-figure=accuracy-rounds]")
    place.scroll_into_view_if_needed()
    assert place.locator(".hoverlayer .hovertext").count() == 0
    box = place.locator(".scatterlayer .points path").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = place.locator(".hoverlayer .hovertext").first
    label.wait_for(timeout=10_000)
    assert re.fullmatch(r"(dpsgd|dmml-kd)0\.\d+ at 2", label.text_content())


def test_a_phone_shows_it_without_overflow(browser: Any, report: Path) -> None:
    phone = {"width": 390, "height": 844}
    opened = open_page(browser, report, viewport=phone, device_scale_factor=2, has_touch=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = opened.page.eval_on_selector_all(
        ".main-svg", "all => all.map(e => e.getBoundingClientRect().right)"
    )
    assert widths and max(widths) <= 390
    assert opened.errors == []
    legends = opened.page.evaluate(
        """() => [...document.querySelectorAll('.legend')].map((legend) => [
            legend.getBoundingClientRect().top,
            legend.closest('[data-figure]').querySelector('.bglayer').getBoundingClientRect().bottom,
        ])"""
    )
    assert len(legends) >= 8 and all(top > plot for top, plot in legends)
    shot(opened, "phone")


def test_a_wide_table_says_that_it_scrolls_until_its_end(browser: Any, report: Path) -> None:
    """On a phone the devices' table is wide; on a large screen it is not."""
    hint = "e => getComputedStyle(e, '::after').content.includes('scrolls sideways')"
    for width, wide in ((390, True), (1280, False)):
        page = open_page(browser, report, viewport={"width": width, "height": 844}).page
        assert page.eval_on_selector("#devices-caption", hint) is wide
    page = open_page(browser, report, viewport={"width": 390, "height": 844}).page
    page.eval_on_selector("#devices", "e => { e.parentElement.scrollLeft = 10_000 }")
    page.wait_for_function(f"!({hint})(document.querySelector('#devices-caption'))")


def test_without_javascript_the_tables_are_there(browser: Any, report: Path) -> None:
    page = open_page(browser, report, scripts=False).page
    note = page.locator("noscript p")  # a search by text passes over noscript
    assert note.is_visible() and "Figures need JavaScript" in note.text_content()
    assert page.locator("#final").is_visible() and page.locator("#devices").is_visible()
    assert page.locator(".card dd").first.is_visible()
    assert page.locator("figure").first.is_hidden() and page.locator("#theme").is_hidden()
    page.click("summary")
    assert page.locator("#defaults").is_visible()


def test_the_comparison_of_two_seeds(browser: Any, runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "comparison.html"
    done = CliRunner().invoke(app, ["compare", str(runs), "-o", str(output)])
    assert done.exit_code == 0, done.output
    for name, width in (("comparison", 1280), ("comparison-phone", 390)):
        opened = open_page(browser, output, viewport={"width": width, "height": 844})
        places, seen = drawn(opened.page)
        assert places == seen >= 6 and opened.errors == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        shot(opened, name)


def test_a_hundred_devices_and_two_hundred_rounds(browser: Any, tmp_path: Path) -> None:
    run = large_run(tmp_path)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0, done.output
    opened = open_page(browser, run / "report.html", viewport={"width": 1280, "height": 900})
    places, seen = drawn(opened.page)
    assert places == seen >= 15 and opened.errors == []
    shot(opened, "large")
