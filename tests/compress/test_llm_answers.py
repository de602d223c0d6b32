"""What a language model's words and log-probabilities are taken for."""

import math

import numpy as np
import pytest
import torch

from compress.llm_answers import (
    Kind,
    default_prompt,
    filled,
    from_logprobs,
    from_votes,
    kind_of,
    named_label,
    named_labels,
    said,
    to_logits,
)
from tests.support.llm_server import token

FILM = ["positive", "negative"]
SPORTS = ["sport", "sports news", "winter sport", "politics"]


@pytest.mark.parametrize(
    ("content", "answers", "expected"),
    [
        ("positive", FILM, 0),
        ("  **Negative**.\n", FILM, 1),
        ('"POSITIVE"', FILM, 0),
        ("Label: negative", FILM, 1),
        ("The text is clearly positive.", FILM, 0),
        ("positive or negative", FILM, None),
        ("non-positively", FILM, None),
        ("", FILM, None),
        ("maybe", FILM, None),
        ("I'm sorry, I cannot call this positive.", FILM, None),
        ("I’m sorry, but negative content is not for me", FILM, None),
        ("winter sport", SPORTS, 2),
        ("It is about winter sport!", SPORTS, 2),
        ("Sports news", SPORTS, 1),
        ("sport", SPORTS, 0),
        ("C", ["A", "B", "C"], 2),
        ("Straße", ["STRASSE", "weg"], 0),
    ],
)
def test_the_label_that_an_answer_names(content: str, answers: list[str], expected: int | None) -> None:
    assert named_label(content, answers) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sport, politics", [0, 3]),
        ("- politics\n- winter sport", [2, 3]),
        ('["sports news"]', [1]),
        ("None.", []),
        ("whatever", None),
        ("I can't say whether politics is in it", None),
    ],
)
def test_the_labels_that_an_answer_names(content: str, expected: list[int] | None) -> None:
    assert named_labels(content, SPORTS) == expected


def test_thoughts_are_not_the_answer() -> None:
    assert said({"content": "<think>positive? no, negative</think>\n positive"}) == "positive"
    assert said({"content": "<think>it goes on and on, positive"}) == ""
    assert said({"content": None}) == ""


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ({"content": "positive"}, Kind.ANSWERED),
        ({"content": None, "refusal": "I can't help with that."}, Kind.REFUSED),
        ({"content": "positive", "refusal": "no"}, Kind.REFUSED),
        ({"content": "pos", "finish_reason": "content_filter"}, Kind.REFUSED),
        ({"content": "I'm sorry, but I can't assist with that request."}, Kind.REFUSED),
        ({"content": "banana"}, Kind.UNPARSABLE),
        ({"content": ""}, Kind.UNPARSABLE),
    ],
)
def test_what_an_answer_is(choice: dict, kind: Kind) -> None:
    assert kind_of(choice, named=named_label(said(choice), FILM) is not None) is kind


def test_a_prompt_is_filled_once() -> None:
    """Braces in a text, and those of JSON in the template, are left alone."""
    template = 'Answer {"label": …} of {labels} for {text} after {other}'
    assert filled(template, "{labels} {text}", None, FILM) == (
        'Answer {"label": …} of positive, negative for {labels} {text} after {other}'
    )
    assert "{text}" in default_prompt(multi_label=False, paired=False)
    pair = filled(default_prompt(multi_label=False, paired=True), "one", "two", FILM)
    assert "First text: one\n\nSecond text: two" in pair
    assert "none" in default_prompt(multi_label=True, paired=False)


def logprobs_of(*tokens: dict) -> np.ndarray | None:
    return from_logprobs(tokens, FILM)


def test_one_token_decides() -> None:
    found = logprobs_of(token("positive", 0.7, {" negative": 0.2, "maybe": 0.1}))
    assert found == pytest.approx([0.7 / 0.9, 0.2 / 0.9])


def test_alternatives_that_begin_alike_add_up() -> None:
    """ "Pos", "positive" and " POSITIVE" are three tokens and one answer."""
    found = logprobs_of(token("pos", 0.4, {"Positive": 0.2, " POSITIVE": 0.1, "neg": 0.25}), token("itive", 1.0))
    assert found == pytest.approx([0.7 / 0.95, 0.25 / 0.95])


def test_marks_before_the_answer_are_passed_over() -> None:
    found = logprobs_of(token('"', 0.9), token("negative", 0.8, {"positive": 0.2}), token('"', 1.0))
    assert found == pytest.approx([0.2, 0.8])


def test_answers_that_begin_alike_are_decided_by_the_next_token() -> None:
    """The chain rule by hand: P(sport) = P("sport") · P(end | "sport"), and so on."""
    answers = ["sport", "sports news", "politics"]
    tokens = (token("sport", 0.8, {"politics": 0.2}), token("s", 0.6, {"<|im_end|>": 0.4}), token(" news", 1.0))
    assert from_logprobs(tokens, answers) == pytest.approx([0.8 * 0.4, 0.8 * 0.6, 0.2])


def test_an_alternative_that_begins_several_answers_is_shared_among_them() -> None:
    """How it would have gone on is not known; what says nothing at all is nobody's."""
    moods = ["negative", "neutral", "positive"]
    assert from_logprobs([token("positive", 0.55, {"ne": 0.45})], moods) == pytest.approx([0.225, 0.225, 0.55])
    tokens = [token("positive", 0.5, {"ne": 0.1, "neut": 0.2, "\n": 0.1, "x": 0.1})]
    assert from_logprobs(tokens, moods) == pytest.approx(np.array([0.05, 0.25, 0.5]) / 0.8)


def test_an_answer_that_ends_with_the_last_token() -> None:
    answers = ["sport", "sports news", "politics"]
    assert from_logprobs((token("sport", 0.8, {"politics": 0.2}),), answers) == pytest.approx([0.8, 0.0, 0.2])
    found = from_logprobs((token("sport", 0.8, {"politics": 0.2}), token(".", 0.9, {"s": 0.1})), answers)
    assert found == pytest.approx([0.8 * 0.9, 0.8 * 0.1, 0.2])


@pytest.mark.parametrize(
    "tokens",
    [(), (token("The", 0.6, {"positive": 0.3}),), (token("banana", 1.0),), (token("\n", 1.0),), (token('"', 0.9),)],
)
def test_tokens_that_name_no_label(tokens: tuple) -> None:
    assert from_logprobs(tokens, FILM) is None


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        (["I", " would", " say", " relevant"], ["relevant", "irrelevant"]),
        (["The", " text", " is", " about", " sports"], ["sports", "theater"]),
        (["It", " is", " French"], ["French", "Italian"]),
        (["Ne", "utral"], FILM),
        (["As", " an", " AI", " I", " cannot"], ["Asia", "Europe"]),
        (["Positive", " or", " negative"], FILM),
    ],
)
def test_an_answer_that_goes_on_to_something_else(pieces: list[str], answers: list[str]) -> None:
    """Its first token begins one label alone, and the whole is not that label."""
    assert from_logprobs([token(piece, 1.0) for piece in pieces], answers) is None


@pytest.mark.parametrize(
    "pieces",
    [("Ne",), ("Ne", "gative"), ("Ne", "gative", "."), ("negative", "<|im_end|>"), ('"', "neg", "ative", '"', "</s>")],
)
def test_an_answer_that_is_cut_off_or_ends_with_marks(pieces: tuple[str, ...]) -> None:
    assert logprobs_of(*(token(piece, 1.0) for piece in pieces)) == pytest.approx([0.0, 1.0])


def test_votes_are_shares() -> None:
    assert from_votes([[0], [0], [1], [0]], 3).tolist() == [0.75, 0.25, 0.0]
    assert from_votes([[0, 2], [], [2]], 3).tolist() == pytest.approx([1 / 3, 0, 2 / 3])


def test_logits_give_the_smoothed_probabilities_back() -> None:
    """By torch's softmax and sigmoid; finite where a label was never named."""
    probabilities = np.array([0.75, 0.25, 0.0])
    logits = to_logits(probabilities, 0.03, multi_label=False)
    assert logits.dtype == np.float32
    assert torch.softmax(torch.from_numpy(logits), 0).numpy() == pytest.approx(0.97 * probabilities + 0.01, abs=1e-6)
    assert float(logits.sum()) == pytest.approx(0, abs=1e-5)
    logits = to_logits(np.array([1.0, 0.5, 0.0]), 0.02, multi_label=True)
    assert torch.sigmoid(torch.from_numpy(logits)).numpy() == pytest.approx([0.99, 0.5, 0.01], abs=1e-6)
    assert logits[0] == pytest.approx(math.log(0.99 / 0.01), abs=1e-4)
