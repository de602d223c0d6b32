"""The report of a bundle as a browser shows it: in light and dark, on a desk, on a phone and on paper."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle import Task
from tests.compress.test_pack import save_model
from tests.compress.test_report_html import HOSTILE, ROWS, SAFE, hostile, packed
from tests.support.rows import tiny_rows, write_lines

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
SCREENS = pytest.mark.parametrize("screen", [{}, PHONE], ids=["desk", "phone"])
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a bundle whose data would act if they could."""
    folder = tmp_path_factory.mktemp("report")
    data = write_lines(folder / "rows.jsonl", [hostile(row) for row in tiny_rows(ROWS, 5, Task.PAIR)])
    return packed(save_model(folder / "model", Task.PAIR), folder / "bundle", data).path("report.html")


@SCHEMES
@SCREENS
def test_it_opens_without_errors_or_requests(new_page: Callable, report: Path, scheme: str, screen: dict) -> None:
    page = new_page(color_scheme=scheme, **screen)
    asked, dialogs = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri())
    assert asked == [report.as_uri()]
    assert dialogs == []
    assert page.locator("script").count() == 0
    assert page.get_by_text(SAFE).count() > 0
    assert HOSTILE not in page.content()
    # what is wider than the screen scrolls by itself
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert (red + green + blue > 600) == (scheme == "light")


@SCHEMES
def test_its_plots_are_drawn_in_colors_that_can_be_seen(new_page: Callable, report: Path, scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    page.goto(report.as_uri())
    plots = page.get_by_role("img")
    assert plots.count() == 2  # quality against time, reliability
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for plot in plots.all():
        box = plot.bounding_box()
        assert box["width"] > 500
        assert box["height"] > 200
        assert plot.get_attribute("aria-label")
        strokes, fills = plot.evaluate(
            "plot => [[...plot.querySelectorAll('path, use')].map(shape => getComputedStyle(shape).stroke),"
            " [...plot.querySelectorAll('text')].map(text => getComputedStyle(text).fill)]"
        )
        assert len(set(strokes) - {"none", background}) >= 3
        assert fills
        assert not {"rgb(0, 0, 0)", "none", background} & set(fills)
        sizes = plot.locator("text").evaluate_all("texts => texts.map(text => text.getBoundingClientRect().height)")
        assert min(sizes) > 8


@pytest.mark.parametrize(("scheme", "screen"), [("dark", {}), ("light", PHONE)])
def test_axe_finds_nothing_wrong(new_page: Callable, report: Path, scheme: str, screen: dict) -> None:
    page = new_page(color_scheme=scheme, **screen)
    page.goto(report.as_uri())
    page.locator("summary").first.click()
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 15
    assert {one["id"]: [node["html"] for node in one["nodes"]] for one in found["violations"]} == {}


def test_on_paper_nothing_is_cut(new_page: Callable, report: Path) -> None:
    page = new_page(color_scheme="dark", viewport={"width": 720, "height": 1000})
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"  # ink, not light
    wide = page.locator(".wide").evaluate_all(
        "parts => parts.filter(part => part.scrollWidth > document.documentElement.clientWidth)"
        ".map(part => part.getAttribute('aria-label'))"
    )
    assert wide == []
