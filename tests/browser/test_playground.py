"""What a person does with a text in the playground. Expected scores come from the API, asked without a browser."""

import json
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.conftest import opened
from tests.support.bundles import tiny_tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = pytest.mark.slow


def classify(page: "Page", text: str, pair: str | None = None) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    if pair is not None:
        page.get_by_label("Second text", exact=True).fill(pair)
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def ask(server: str, path: str, **body: object) -> dict:
    answer = httpx.post(f"{server}/v1/models/{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]


def bars(card) -> dict[str, tuple[str, float]]:
    """Of each label the number beside its bar, and the bar's share of its track."""
    found = {}
    for line in card.locator(".bars li").all():
        widths = [line.locator(part).bounding_box()["width"] for part in (".fill", ".track")]
        found[line.locator(".label").inner_text()] = (
            line.locator(".number").inner_text(),
            pytest.approx(widths[0] / widths[1], abs=0.02),
        )
    return found


def expected_bars(result: dict) -> dict[str, tuple[str, float]]:
    return {one["label"]: (f"{one['score']:.3f}", one["score"]) for one in result["labels"]}


def explanation_of(text: str) -> dict:
    """What POST …/explain answers, with effects made up from the words' places."""
    effects = [0.4, -0.2, 0.0, 0.1]
    words = [
        {"text": one[0], "start": one.start(), "end": one.end(), "field": "text", "effect": effects[number % 4]}
        for number, one in enumerate(re.finditer(r"\S+", text))
    ]
    told = {"model": "reviews", "version": "2", "variant": "fp32", "label": "positive", "score": 0.9}
    return told | {"method": "occlusion", "words": words, "tokens": 9, "truncated": False, "words_left_out": 0}


def test_typing_and_classifying_shows_bars_with_the_apis_scores(playground, server) -> None:
    classify(playground, "a very good film")
    card = playground.get_by_role("article")
    assert bars(card) == expected_bars(ask(server, "reviews/classify", inputs="a very good film"))
    expect(playground.get_by_role("status").first).to_have_text(re.compile(r"reviews 2: positive, 0\.\d{3}$"))
    expect(card).to_contain_text("6 tokens read, all of the text.")


def test_the_time_of_the_call_is_split(playground) -> None:
    classify(playground, "a good film")
    for part in ("reading and tokenizing", "queue", "inference", "writing the answer"):
        expect(playground.locator(".latency li", has_text=part)).to_have_text(re.compile(r"\d ms$"))
    expect(playground.locator(".latency")).to_contain_text(
        re.compile(r"[\d.]+ ms in the service, [\d.]+ ms as this browser saw it")
    )


def test_another_model_or_version_is_asked_when_it_is_chosen(playground, server) -> None:
    classify(playground, "a great movie")
    expect(playground.get_by_role("article")).to_contain_text("version 2")
    playground.get_by_label("Version").select_option("1")
    classify(playground, "a great movie")
    assert bars(playground.get_by_role("article")) == expected_bars(
        ask(server, "reviews/versions/1/classify", inputs="a great movie")
    )
    expect(playground.get_by_role("status").first).to_contain_text("reviews 1: negative")
    playground.get_by_label("Model").select_option("themes")
    expect(playground.locator("#about")).to_contain_text("multi-label · 3 labels · reads 32 tokens")


def test_two_versions_side_by_side(playground) -> None:
    playground.get_by_label("Compare with").select_option(label="reviews 1")
    classify(playground, "a great movie")
    left, right = playground.get_by_role("article").all()
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    assert left.bounding_box()["x"] < right.bounding_box()["x"]
    expect(left).to_contain_text("version 2")
    expect(right).to_contain_text("version 1")
    expect(playground.get_by_role("status").first).to_contain_text("They disagree; scores differ by at most 0.")


def test_multi_label_says_which_labels_reach_their_thresholds(playground, server) -> None:
    playground.get_by_label("Model").select_option("themes")
    classify(playground, "a great film")
    result = ask(server, "themes/classify", inputs="a great film")
    assert bars(playground.get_by_role("article")) == expected_bars(result)
    for one in result["labels"]:
        given = one["label"] in result["predicted"]
        line = playground.locator(".bars li", has_text=one["label"])
        threshold = {"story": "0.80"}.get(one["label"], "0.50")
        expect(line).to_contain_text(f"{'given: reaches' if given else 'not given: below'} {threshold}")
        tick, track = line.locator(".tick").bounding_box(), line.locator(".track").bounding_box()
        assert (tick["x"] - track["x"]) / track["width"] == pytest.approx(float(threshold), abs=0.02)
    assert 0 < len(result["predicted"]) < 3


def test_pairs_have_two_boxes(playground, server) -> None:
    expect(playground.get_by_label("Second text", exact=True)).to_be_hidden()
    playground.get_by_label("Model").select_option("pairs")
    playground.get_by_label("Example").select_option(index=1)
    expect(playground.get_by_label("Second text", exact=True)).to_have_value("the plot was awful")
    classify(playground, "a good movie", "a great movie")
    result = ask(server, "pairs/classify", inputs=[{"text": "a good movie", "text_pair": "a great movie"}])
    assert bars(playground.get_by_role("article")) == expected_bars(result)


def test_an_example_of_the_bundle_is_taken_over(playground) -> None:
    playground.get_by_label("Example").select_option(label="not very good")
    expect(playground.get_by_label("Text", exact=True)).to_have_value("not very good")


def test_entities_are_marked_in_the_text_among_emoji_and_from_right_to_left(playground, server) -> None:
    playground.get_by_label("Model").select_option("names")
    text = "👍🏽 שלום movie 👩‍👩‍👧 film, e\u0301 plot سلام"
    classify(playground, text)
    marks = playground.locator("mark.entity")
    assert [(mark.locator("span").first.inner_text(), mark.locator(".kind").inner_text()) for mark in marks.all()] == [
        ("movie", "WORK"),
        ("film", "KIND"),
        ("plot", "WORK"),
    ]
    marked = playground.locator(".marked").evaluate(
        "box => { const copy = box.cloneNode(true); copy.querySelectorAll('.kind').forEach(one => one.remove());"
        " return copy.textContent }"
    )
    assert marked == text
    rows = playground.locator("tbody tr").all()
    entities = ask(server, "names/tag", inputs=text)["entities"]
    assert [row.locator("td").last.inner_text() for row in rows] == [f"{one['score']:.3f}" for one in entities]


def test_a_long_text_is_shown_with_where_it_was_cut(playground) -> None:
    text = " ".join(["👍🏽 good", "שלום film"] * 8)
    classify(playground, text)
    end = tiny_tokenizer().encode(text, add_special_tokens=False).offsets[13][1]  # 16 less two special tokens
    expect(playground.locator("del.unread")).to_have_text(text[end:])
    left = len(text) - end
    expect(playground.get_by_role("article")).to_contain_text(
        f"The text was cut: the model reads 16 tokens, and {left} characters at the end were not read."
    )
    playground.get_by_label("Model").select_option("names")
    classify(playground, "movie " * 40)
    assert playground.locator("mark.entity").count() == 30
    expect(playground.locator("del.unread")).to_have_text(" movie" * 10 + " ")


def test_a_text_from_right_to_left_is_laid_out_so(playground) -> None:
    classify(playground, "שלום עולם good " * 6)
    direction = "one => getComputedStyle(one).direction"
    assert playground.get_by_label("Text", exact=True).evaluate(direction) == "rtl"
    assert playground.locator(".marked").evaluate(direction) == "rtl"


def test_what_looks_like_markup_is_text(playground) -> None:
    playground.get_by_label("Model").select_option("names")
    text = "<img src=x onerror=alert(1)> movie </p><script>alert(2)</script>"
    classify(playground, text)
    assert playground.locator("#results img, #results script").count() == 0
    expect(playground.locator(".marked")).to_contain_text("</p><script>alert(2)</script>")


def test_explaining_colors_the_words_by_sign_and_strength(playground) -> None:
    asked = []

    def answer(route: "Route") -> None:
        asked.append((route.request.url, json.loads(route.request.post_data)))
        route.fulfill(json=explanation_of(asked[-1][1]["inputs"]))

    playground.route("**/explain", answer)
    text = "👍🏽 bad סרט film"
    playground.get_by_label("Text", exact=True).fill(text)
    playground.get_by_label("for", exact=True).select_option("positive")
    playground.get_by_role("button", name="Explain").click()
    explained = playground.locator(".explained")
    words = explained.locator(".marked .word")
    expect(words).to_have_count(3)
    assert asked[0][0].endswith("/v1/models/reviews/versions/2/explain")
    assert asked[0][1] == {"inputs": text, "label": "positive"}
    assert [(word.inner_text(), word.get_attribute("title")) for word in words.all()] == [
        ("👍🏽", "for positive: +0.400"),
        ("bad", "against positive: −0.200"),
        ("film", "for positive: +0.100"),
    ]
    lines = [
        word.evaluate(
            "one => [getComputedStyle(one).textDecorationStyle, getComputedStyle(one).textDecorationThickness]"
        )
        for word in words.all()
    ]
    assert lines == [["solid", "4px"], ["dashed", "2px"], ["solid", "1px"]]
    expect(explained.locator(".legend")).to_contain_text("solid line speaks for positive, dashed line against it")
    explained.get_by_text("strongest words in numbers").click()
    assert explained.locator("tbody tr").first.inner_text().split() == ["👍🏽", "for", "+0.400"]


@pytest.mark.parametrize(
    ("status", "code", "shown"),
    [
        (404, "not_found", "This service has no such route. (no such path"),
        (429, "queue_full", "The service is busy: try again in a moment. (no such path"),
        (422, "invalid_input", "no such path"),
    ],
)
def test_a_service_that_does_not_explain_still_classifies(playground, problems, status, code, shown) -> None:
    body = {"error": {"code": code, "message": "no such path; GET /docs lists those there are"}}
    playground.route("**/explain", lambda route: route.fulfill(status=status, json=body))
    playground.get_by_label("Text", exact=True).fill("good")
    playground.get_by_role("button", name="Explain").click()
    expect(playground.get_by_role("article")).to_contain_text(f"No explanation: {shown}")
    assert len(bars(playground.get_by_role("article"))) == 2
    assert [f"status of {status}" in problem for problem in problems] == [True]
    problems.clear()


def test_explaining_with_the_services_own_words(page, server, problems) -> None:
    body = {"inputs": "a good film"}
    playground = opened(page, server)
    playground.get_by_label("Text", exact=True).fill(body["inputs"])
    playground.get_by_role("button", name="Explain").click()
    words = playground.locator(".explained .marked .word.for")
    expect(words.filter(has_text="good")).to_have_attribute("title", re.compile(r"for positive: \+0\.\d+"))


def test_bad_input_is_told_in_the_services_words(playground, problems) -> None:
    classify(playground, "   ")
    expect(playground.get_by_role("article")).to_contain_text(
        "inputs[0]: found an empty text, expected at least one character that is not white space"
    )
    assert ["status of 422" in problem for problem in problems] == [True]
    problems.clear()
