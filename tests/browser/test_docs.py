"""The API's reference in a browser, which asks nobody but the service."""

import pytest

pytestmark = pytest.mark.slow


def test_swagger_ui_lists_the_routes_and_tries_one(page, server) -> None:
    page.goto(f"{server}/docs")
    classify = page.locator("#operations-classify-classify_v1_classify_post")
    classify.wait_for()
    classify.locator("button.opblock-summary-control").click()
    classify.get_by_role("button", name="Try it out").click()
    classify.locator("textarea").fill('{"inputs": "a great film"}')
    classify.get_by_role("button", name="Execute").click()
    answer = classify.locator(".live-responses-table .response-col_description pre").first
    answer.wait_for()
    assert "positive" in answer.inner_text()


def test_redoc_shows_the_document_and_may_not_fetch_its_makers_logo(page, server, problems) -> None:
    page.goto(f"{server}/redoc")
    page.get_by_role("heading", name="Limbeck").first.wait_for()
    page.get_by_role("heading", name="Classify with a pinned version").wait_for()
    page.wait_for_load_state("networkidle")
    blocked = "' violates the following Content Security Policy directive"
    for problem in problems:
        url = problem.removeprefix("asks ")
        assert blocked in problem or any(f"'{url}{blocked}" in other for other in problems), problem
    problems.clear()
