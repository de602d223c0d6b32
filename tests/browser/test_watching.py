"""The fixture `page` sees what it says it sees."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_errors_and_requests_to_strangers_are_seen(page, problems, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    (tmp_path / "style.css").write_text("")
    file.write_text(
        "<title>t</title><script>console.error('said'); setTimeout(() => { throw new Error('thrown') })</script>"
        "<link rel=stylesheet href=style.css><img src='http://127.0.0.1:1/a.png'><img src='data:,'>"
    )
    page.goto(file.as_uri())
    page.wait_for_timeout(50)
    assert "console: said" in problems
    assert "script: thrown" in problems
    assert f"asks {(tmp_path / 'style.css').as_uri()}" in problems
    assert "asks http://127.0.0.1:1/a.png" in problems
    assert not any("data:" in problem for problem in problems)
    problems.clear()


def test_a_server_may_be_asked_for_what_is_its_own_alone(page, problems, server) -> None:
    page.goto(f"{server}/health/live")
    page.evaluate("fetch('/v1/models').then(answer => answer.text())")
    assert not any(problem.startswith("asks") for problem in problems)
    page.evaluate("fetch('http://127.0.0.1:1/').catch(() => {})")
    assert "asks http://127.0.0.1:1/" in problems
    problems.clear()  # Chromium asks for an icon, too, and there is none
