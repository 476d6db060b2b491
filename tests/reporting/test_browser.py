"""The report in a real browser: what is drawn, reached by mouse and keyboard, and read by a screen reader.

Needs Playwright, axe (axe-playwright-python) and the system's Chromium; skipped where one is missing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import nasspace
from nasspace.reporting.report import write_report

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
SPACE = """
name: tiny
input: [3, 32, 32]
stem:
  - {block: conv, out: 8, kernel: 3, stride: 2}
stages:
  - depth: [1, 2]
    out: [8, 16, 24]
    stride: 2
    each:
      block:
        - shuffle_v1: {groups: [1, 2, 4], kernel: [3, 5]}
        - inverted_residual: {expansion: [2, 3]}
head:
  - {block: conv, out: 16, kernel: 1}
"""


def found_by(architecture) -> dict[str, float]:
    """An accuracy and a latency that grow with the network, and depend on its digest."""
    size, noise = nasspace.cost(architecture).flops, int(architecture.digest[:4], 16) / 65536
    return {"accuracy": 1 - 0.5 / (1 + size / 2e5) - 0.1 * noise, "latency": size / 1e5 + noise}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of a search of 24 networks with limits, by a function."""
    folder = tmp_path_factory.mktemp("browser")
    with contextlib.chdir(folder):
        space = nasspace.Space.from_text(SPACE)
        limits = {"latency_target_ms": 8.0, "flops_target": 500_000}
        study = nasspace.search(space, evaluator=found_by, trials=24, seed=1, study="browser", **limits)
        return write_report(study.snapshot()).absolute()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


class Opened:
    """A page with what it printed to the console and what it asked the network for."""

    def __init__(self, browser, path: Path, **settings):
        self.page = browser.new_page(**settings)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.messages.append(f"error: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri(), wait_until="load")
        self.page.wait_for_selector("[id^=view].plotly-graph-div .main-svg")
        self.page.wait_for_selector("article:not([hidden])")

    def marked(self, view: str) -> list[str]:
        """The networks that are marked in a figure."""
        return self.page.eval_on_selector_all(f"#{view} .marks > *", "all => all.map(one => one.dataset.network)")

    def at(self, number: str, view: str) -> bool:
        """Whether the mark of a network in a view is where its point is drawn."""
        script = """([view, number]) => {
            const middle = box => [box.x + box.width / 2, box.y + box.height / 2];
            const figure = document.getElementById(view);
            const ring = middle(figure.querySelector(`.marks [data-network="${number}"]`).getBoundingClientRect());
            const points = [...figure.querySelectorAll('.scatterlayer .point')];
            return points.some(point => {
                const [x, y] = middle(point.getBoundingClientRect());
                return Math.hypot(x - ring[0], y - ring[1]) < 2;
            });
        }"""
        return self.page.evaluate(script, [view, number])

    def center(self, view: int, number: str) -> tuple[float, float]:
        """Where a network is drawn on the screen."""
        script = """([i, number]) => {
            const view = document.querySelectorAll('[id^=view].plotly-graph-div')[i];
            const trace = view.data.find(trace => (trace.ids || []).includes(number));
            const j = trace.ids.indexOf(number), {xaxis, yaxis} = view._fullLayout, box = view.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.d2p(trace.x[j]), box.y + yaxis._offset + yaxis.d2p(trace.y[j])];
        }"""
        return tuple(self.page.evaluate(script, [view, number]))

    @property
    def shown(self) -> list[str]:
        """The panels that are shown."""
        return self.page.eval_on_selector_all("article:not([hidden])", "all => all.map(one => one.id)")


@pytest.fixture
def opened(browser, report) -> Iterator[Opened]:
    """The report on a wide screen; afterwards, nothing may have been printed or asked for."""
    opened = Opened(browser, report, viewport={"width": 1280, "height": 1000})
    yield opened
    assert opened.messages == []
    assert opened.requests == [report.as_uri()]
    opened.page.close()


def test_the_views_show_every_network_and_a_panel_is_open(opened):
    counts = opened.page.evaluate(
        "[...document.querySelectorAll('[id^=view].plotly-graph-div')].map(view =>"
        " view.querySelectorAll('.scatterlayer .point').length)"
    )
    assert len(counts) >= 3
    options = opened.page.locator("#networks [role=option]").count()
    assert all(count >= options for count in counts[:3])
    assert len(opened.shown) == 1
    assert opened.page.locator("article:not([hidden]) svg.picture").count() == 1


def test_pointing_at_a_network_marks_it_in_all_views(opened):
    other = opened.page.locator("#networks .evaluated").first.get_attribute("id").removeprefix("option-")
    x, y = opened.center(0, other)
    opened.page.mouse.move(x - 40, y)
    opened.page.mouse.move(x, y)
    opened.page.wait_for_selector(f"#option-{other}.pointed")
    opened.page.wait_for_timeout(100)
    for view in ("view1", "view2", "view3", "choices"):
        assert other in opened.marked(view), view
    assert all(opened.at(other, view) for view in ("view1", "view2", "view3"))
    assert opened.page.locator(".hoverlayer .hovertext").count() == 1


def test_a_click_on_a_point_opens_its_panel(opened):
    other = opened.page.locator("#networks .front").last.get_attribute("id").removeprefix("option-")
    opened.page.mouse.click(*opened.center(2, other))
    assert opened.shown == [f"network-{other}"]
    assert opened.page.evaluate("document.activeElement.textContent").startswith(f"Trial {other}")
    assert opened.page.url.endswith(f"#network-{other}")


def test_a_finger_opens_a_panel_and_scrolls_past_the_views(browser, report):
    opened = Opened(browser, report, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    other = opened.page.locator("#networks .evaluated").last.get_attribute("id").removeprefix("option-")
    opened.page.locator("#view1").scroll_into_view_if_needed()
    opened.page.touchscreen.tap(*opened.center(0, other))
    opened.page.wait_for_selector(f"#network-{other}:not([hidden])", timeout=5000)
    assert opened.page.evaluate("document.getElementById('view1')._fullLayout.dragmode") is False
    assert opened.messages == []
    opened.page.close()


def test_the_keyboard_reaches_every_network(opened):
    page = opened.page
    page.focus("#networks")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    active = page.get_attribute("#networks", "aria-activedescendant")
    numbers = page.eval_on_selector_all("#networks [role=option]", "all => all.map(one => one.id)")
    assert active == numbers[-2]
    page.wait_for_timeout(100)
    number = active.removeprefix("option-")
    assert number in opened.marked("view2")
    page.keyboard.press("Enter")
    assert opened.shown == [f"network-{number}"]
    assert page.get_attribute(f"#{active}", "aria-selected") == "true"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "networks"


def test_a_command_is_copied(opened):
    page = opened.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("article:not([hidden]) [data-copy]").first
    button.click()
    page.wait_for_selector("article:not([hidden]) [data-copy]:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == button.get_attribute("data-copy")


def test_a_link_opens_its_network(browser, report):
    opened = Opened(browser, report)
    last = opened.page.locator("#networks [role=option]").last.get_attribute("id").replace("option-", "network-")
    opened.page.goto(f"{report.as_uri()}#{last}")
    opened.page.wait_for_selector(f"#{last}:not([hidden])")
    assert opened.shown == [last]
    opened.page.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_as_wide_as_the_screen(browser, report, width, scheme):
    opened = Opened(browser, report, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    page.wait_for_timeout(200)
    found = axe.Axe().run(page)
    problems = {rule["id"]: [node["html"][:200] for node in rule["nodes"][:3]] for rule in found.response["violations"]}
    assert problems == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.messages == []
    page.close()


def test_print_shows_the_whole_front(browser, report):
    opened = Opened(browser, report)
    opened.page.emulate_media(media="print")
    members = opened.page.locator("#networks .front").count()
    visible = opened.page.eval_on_selector_all(
        "article", "all => all.filter(one => getComputedStyle(one).display !== 'none').length"
    )
    assert visible == members
    opened.page.close()
