"""Who can use the playground: by keyboard, on a phone, by ear, with a key; what it says when the service is gone."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.serving.service_process import serving
from tests.browser.conftest import QUICK, opened
from tests.browser.test_playground import classify, explanation_of

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
Axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
KEY = "lk_0123456789"


def busy_page(page: "Page") -> "Page":
    """Everything that the page can show, at once."""
    page.route("**/explain", lambda route: route.fulfill(json=explanation_of("a good but very long film")))
    page.get_by_label("Compare with").select_option(label="themes 1")
    page.get_by_label("Text", exact=True).fill("good film " * 20)
    page.get_by_role("button", name="Explain").click()
    expect(page.locator(".explained")).to_have_count(2)
    page.get_by_label("Drop a file here").set_input_files(
        [{"name": "a.csv", "mimeType": "", "buffer": b"text\ngood\n=1\n a,b\n"}]
    )
    page.get_by_role("button", name="Classify the file").click()
    expect(page.locator("#download")).to_be_visible()
    page.get_by_text("API key", exact=True).click()
    return page


def violations(page: "Page") -> dict[str, list[str]]:
    """Of every kind, serious or not."""
    found = Axe().run(page).response
    assert len(found["passes"]) > 20
    return {one["id"]: [node["html"] for node in one["nodes"]] for one in found["violations"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_wrong(new_page, server, scheme, screen) -> None:
    page = opened(new_page(color_scheme=scheme, **screen), server)
    assert violations(page) == {}
    busy_page(page)
    assert violations(page) == {}
    page.get_by_label("Model").select_option("names")
    classify(page, "movie film plot " * 200)
    assert violations(page) == {}


def test_axe_would_find_something(playground) -> None:
    playground.evaluate("document.querySelector('label[for=text]').remove()")
    assert "label" in violations(playground)


def test_all_of_it_works_by_keyboard(playground) -> None:
    def focused() -> str:
        return playground.evaluate("document.activeElement.id || document.activeElement.textContent")

    order = []
    for _ in range(12):
        playground.keyboard.press("Tab")
        order.append(focused())
        outline = playground.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", order
    assert order == [
        *("API key", "model", "version", "other", "example", "text", "classify", "explain", "of", "file"),
        *("API reference", "OpenAPI document"),
    ]
    playground.locator("#model").focus()
    playground.keyboard.type("themes")
    expect(playground.locator("#about")).to_contain_text("multi-label")
    playground.locator("#text").focus()
    playground.keyboard.type("a great film")
    playground.keyboard.press("Control+Enter")
    expect(playground.get_by_role("article")).to_contain_text("themes")
    expect(playground.get_by_role("status").first).to_have_text("themes 1: praise")
    assert focused() == "text"


def test_nothing_is_wider_than_a_phone(new_page, server) -> None:
    page = busy_page(opened(new_page(**PHONE), server))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.get_by_role("button").all():
        assert button.bounding_box()["height"] >= 44


def test_a_service_that_is_gone_and_comes_back(page, bundles: list[Path], problems) -> None:
    with serving(*bundles, **QUICK) as (process, port):
        url = f"http://127.0.0.1:{port}"
        opened(page, url)
        process.kill()
        process.wait()
        classify(page, "good")
        gone = "The service cannot be reached. Is it still running?"
        expect(page.get_by_role("article")).to_contain_text(gone)
    page.get_by_label("Model").select_option("themes")
    classify(page, "good")
    expect(page.get_by_role("article")).to_contain_text(gone)
    assert problems
    assert all("ERR_CONNECTION_REFUSED" in problem for problem in problems)
    problems.clear()


def test_a_key_is_asked_for_kept_in_the_tab_and_never_in_an_address(page, bundles, problems, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\nid = "a"\nsha256 = "{digest}"\nmodels = ["reviews"]\nrequests_per_minute = 2\n')
    addresses = []
    page.on("request", lambda request: addresses.append(request.url))
    with serving(*bundles, keys_file=keys, **QUICK) as (_, port):
        page.goto(f"http://127.0.0.1:{port}/playground")
        alarm = page.get_by_role("alert")
        expect(alarm).to_contain_text(
            "The service wants an API key: put one in above. (found none, expected an API key"
        )
        assert page.locator("#example option").count() == 0
        field = page.get_by_label("Key, kept in this tab only")
        expect(field).to_be_focused()
        field.fill("lk_wrong")
        field.press("Enter")
        expect(alarm).to_contain_text("found one that is not known")
        field.fill("schlüssel")
        field.press("Enter")
        expect(alarm).to_contain_text("The service wants an API key")
        field.fill(f" {KEY} ")
        field.press("Enter")
        expect(alarm).to_be_hidden()
        assert page.locator("#model option").all_inner_texts() == ["reviews"]
        page.reload()
        page.locator("#about").filter(has_text="variant").wait_for()
        for _ in range(2):
            classify(page, "good")
        expect(page.get_by_role("article")).to_contain_text("positive")
        classify(page, "good")
        expect(page.get_by_role("article")).to_contain_text("The key's quota is used up for")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert not any(KEY in address for address in [*addresses, page.url])
    assert all("status of 4" in problem for problem in problems)
    problems.clear()


def test_a_service_that_still_loads_is_asked_again(page, server, problems) -> None:
    answers = iter([503])

    def loading_at_first(route: "Route") -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, json={"error": {"code": "not_ready", "message": "models are still loading"}})

    page.route("**/playground/models", loading_at_first)
    page.goto(f"{server}/playground")
    alarm = page.get_by_role("alert")
    expect(alarm).to_have_text("The service is not ready yet; this page asks again. (models are still loading)")
    expect(alarm).to_be_hidden()
    expect(page.locator("#about")).to_contain_text("single-label")
    assert ["status of 503" in problem for problem in problems] == [True]
    problems.clear()
