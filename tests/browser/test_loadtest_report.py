"""The report of `limbeck loadtest run` as a browser shows it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loadtest.slow_server import Behavior, slow_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    with slow_server(Behavior([0.02])) as port:
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(ROOT / "limbeck.py"), "loadtest", "run", url, "--rate", "50"]
        command += ["--duration", "3", "--warm-up", "0", "--processes", "1", "--html", str(file)]
        subprocess.run(command, check=True, capture_output=True, timeout=250)
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_or_requests_and_shows_its_charts(new_page, report, scheme) -> None:
    page = new_page(color_scheme=scheme)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert asked == [report.as_uri()]
    charts = page.locator("svg")
    assert charts.count() == 3
    for chart in charts.all():
        box = chart.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
        assert chart.locator("polyline, circle").count() > 0
        (line, background) = chart.evaluate(
            "chart => [getComputedStyle(chart.querySelector('polyline, circle')), getComputedStyle(document.body)]"
            ".map((style, index) => index ? style.backgroundColor : style.stroke + style.fill)"
        )
        assert background not in line
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert (red + green + blue > 600) == (scheme == "light")
