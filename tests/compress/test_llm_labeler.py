"""The labels of many texts, of a server that speaks the endpoint's API and misbehaves."""

import time
from pathlib import Path

import pytest

from compress.errors import LlmError
from tests.support.llm_asking import BODY, PROMPTS, TEXTS, config, label
from tests.support.llm_server import (
    SURE,
    Answer,
    Body,
    completion,
    error,
    label_of,
    serving,
    text_of,
    with_logprobs,
    with_votes,
)

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_log_probabilities_become_probabilities(tmp_path: Path) -> None:
    with serving() as server:
        found, tally, method = label(config(server), tmp_path)
    assert method == "logprobs"
    assert len(found) == len(PROMPTS) == len(server.bodies)
    for text, prompt in zip(TEXTS, PROMPTS, strict=True):
        expected = [1 - SURE, SURE] if label_of(text) == "positive" else [SURE, 1 - SURE]
        assert found[prompt] == pytest.approx(expected)
    assert tally.texts == {"answered": len(PROMPTS)}
    assert tally.prompt_tokens == sum(len(prompt.split()) for prompt in PROMPTS)
    assert tally.completion_tokens == tally.responses == len(PROMPTS)
    prices = {"price_per_million_input_tokens": 2.0, "price_per_million_output_tokens": 8.0}
    assert tally.cost(config(server, **prices)) == pytest.approx((2 * tally.prompt_tokens + 8 * len(PROMPTS)) / 1e6)
    assert tally.cost(config(server)) is None


def test_a_server_without_log_probabilities_is_asked_for_votes(tmp_path: Path) -> None:
    with serving(with_votes) as server:
        found, tally, method = label(config(server, samples=4), tmp_path)
    assert method == "votes"
    assert len(server.bodies) == 1 + len(PROMPTS)  # one to find out
    assert [body.get("n") for body in server.bodies] == [None] + [4] * len(PROMPTS)
    assert all(body["temperature"] == 0.7 for body in server.bodies[1:])
    assert set(map(tuple, found.values())) == {(0.0, 1.0), (1.0, 0.0)}
    assert tally.responses == 1 + len(PROMPTS)
    message = r"the server returns no log-probabilities; set teacher\.llm\.method to votes"
    with serving(with_votes) as server, pytest.raises(LlmError, match=message):
        label(config(server, method="logprobs"), tmp_path)


def test_a_server_that_refuses_the_field_is_asked_for_votes(tmp_path: Path) -> None:
    def rule(body: Body, number: int) -> Answer:
        return error(400, "unknown field logprobs") if "logprobs" in body else with_votes(body, number)

    with serving(rule) as server:
        assert label(config(server), tmp_path)[2] == "votes"


TOO_LONG = error(400, "maximum context length is 4096 tokens")
FILTERED = completion([""], BODY, refusal="no")
SORRY = completion(["I'm sorry, I can't help with that."], BODY)


@pytest.mark.parametrize("method", ["auto", "logprobs"])
def test_a_text_without_an_answer_does_not_choose_the_method(tmp_path: Path, method: str) -> None:
    given = dict(zip(TEXTS, [FILTERED, TOO_LONG, SORRY, completion([""], BODY)], strict=False))
    with serving(lambda body, number: given.get(text_of(body)) or with_logprobs(body, number)) as server:
        found, tally, chosen = label(config(server, method=method), tmp_path)
    assert chosen == "logprobs"
    assert set(found) == set(PROMPTS[4:])
    assert tally.texts == {"answered": len(TEXTS) - 4, "refused": 2, "rejected": 1, "unparsable": 1}


@pytest.mark.parametrize(("method", "chosen"), [("auto", "votes"), ("logprobs", "logprobs")])
def test_where_no_text_shows_what_the_server_can_the_recipe_decides(tmp_path: Path, method: str, chosen: str) -> None:
    """Only so many are tried to find out."""
    odd = set(TEXTS[:8])
    with serving(lambda body, number: FILTERED if text_of(body) in odd else with_logprobs(body, number)) as server:
        found, _, used = label(config(server, method=method, samples=1), tmp_path)
        probing = [body for body in server.bodies if "logprobs" in body]
    assert used == chosen
    assert len(probing) == (5 if method == "auto" else len(TEXTS))
    assert set(found) == set(PROMPTS[8:])


def test_a_server_that_gives_one_answer_a_request_is_asked_once_for_each(tmp_path: Path) -> None:
    """That it refuses more is found out once, and a text that it refuses alone is the text's fault."""

    def rule(body: Body, number: int) -> Answer:
        if body.get("n", 1) > 1:
            return error(400, "n must be 1")
        if text_of(body) == TEXTS[1]:
            return TOO_LONG
        return completion([("positive", "positive", "negative")[number]], body)

    with serving(rule) as server:
        settings = config(server, method="votes", samples=3, concurrency=1)
        found, tally, _ = label(settings, tmp_path, PROMPTS[:6])
        assert tally.texts == {"answered": 5, "rejected": 1}
        assert all(votes.tolist() == pytest.approx([1 / 3, 2 / 3]) for votes in found.values())
        assert [body.get("n") for body in server.bodies] == [3, *[None] * (5 * 3 + 1)]
        again, tally, _ = label(settings, tmp_path, PROMPTS[:6])
        assert (tally.kept_before, len(again)) == (15, 5)


def test_votes_are_counted_whatever_a_server_gives_at_a_time(tmp_path: Path) -> None:
    """One sample a response, whatever n says; two of five for the other label."""

    def rule(body: Body, number: int) -> Answer:
        return completion(["negative" if body.get("n", 1) in (5, 2) else "positive"], body)

    with serving(rule) as server:
        found, tally, _ = label(config(server, method="votes", samples=5), tmp_path, PROMPTS[:1])
    assert found[PROMPTS[0]].tolist() == [0.4, 0.6]
    assert [body.get("n") for body in server.bodies] == [5, 4, 3, 2, None]
    assert tally.responses == 5


def test_what_is_no_label_is_counted_and_dropped(tmp_path: Path) -> None:
    kinds: list[Answer] = [
        completion(["banana"], BODY),
        completion(["I'm sorry, I can't help with that."], BODY),
        completion([""], BODY, refusal="no"),
        (400, {}, {"error": {"message": "no", "code": "content_filter"}}),
        error(400, "this text is too long"),
    ]
    given = dict(zip(TEXTS[1:], kinds, strict=False))
    with serving(lambda body, number: given.get(text_of(body)) or with_logprobs(body, number)) as server:
        found, tally, _ = label(config(server), tmp_path)
    assert tally.texts == {"answered": len(TEXTS) - 5, "unparsable": 1, "refused": 3, "rejected": 1}
    assert set(found) == {PROMPTS[0], *PROMPTS[6:]}
    assert "too long" in tally.problem or "no" in tally.problem


def test_nothing_is_asked_for_twice(tmp_path: Path) -> None:
    with serving() as server:
        settings = config(server)
        first = label(settings, tmp_path, PROMPTS[:25])
        again, tally, _ = label(settings, tmp_path, [*PROMPTS, *PROMPTS])
        assert len(server.bodies) == len(PROMPTS)
        assert tally.kept_before == 25
        label(settings.model_copy(update={"max_tokens": 17}), tmp_path, PROMPTS[:2])
        assert len(server.bodies) == len(PROMPTS) + 2  # another request
    assert all(again[prompt].tolist() == first[0][prompt].tolist() for prompt in PROMPTS[:25])


def test_what_is_under_way_when_the_key_is_refused_is_not_paid_for_twice(tmp_path: Path) -> None:
    def rule(body: Body, number: int) -> Answer:
        if text_of(body) == TEXTS[3]:
            return error(401, "the key was withdrawn")
        time.sleep(2)  # whoever is under way then waits for its answer
        return with_logprobs(body, number)

    with serving(rule) as server:
        settings = config(server, concurrency=8)
        with pytest.raises(LlmError, match="refused"):
            label(settings, tmp_path)
        assert len(server.bodies) < len(PROMPTS)  # nothing more was sent
        server.rule = with_logprobs
        found, tally, _ = label(settings, tmp_path)
        assert set(server.asked().values()) == {1}
    assert len(found) == len(PROMPTS)
    assert tally.kept_before == 8  # the one that chose the method, and seven beside the refused one


def test_one_text_that_never_gets_an_answer_does_not_stop_the_others(tmp_path: Path) -> None:
    with serving(
        lambda body, number: error(500, "crash") if text_of(body) == TEXTS[7] else with_logprobs(body, number),
        delay_s=0.01,
    ) as server:
        found, tally, _ = label(config(server), tmp_path)
        assert tally.texts == {"answered": len(TEXTS) - 1, "failed": 1}
        assert PROMPTS[7] not in found
        asked = len(server.bodies)
        label(config(server), tmp_path)  # it was not kept, so it is tried again
        assert len(server.bodies) > asked


@pytest.mark.parametrize("texts", [[0], [len(TEXTS) - 1], [0, 7, 8, 20, 30, len(TEXTS) - 2, len(TEXTS) - 1]])
@pytest.mark.parametrize(("concurrency", "retries"), [(1, 0), (8, 0), (8, 2)])
def test_nor_do_some_wherever_they_stand_or_when_only_they_are_left(
    tmp_path: Path, texts: list[int], concurrency: int, retries: int
) -> None:
    bad = {TEXTS[text] for text in texts}
    with serving(
        lambda body, number: error(500, "crash") if text_of(body) in bad else with_logprobs(body, number)
    ) as server:
        for _ in range(2):
            found, tally, method = label(config(server, concurrency=concurrency, retries=retries), tmp_path)
            assert method == "logprobs"
            assert tally.texts == {"answered": len(TEXTS) - len(bad), "failed": len(bad)}
            assert len(found) == len(TEXTS) - len(bad)
        assert set(server.asked().values()) == {1}


def test_an_endpoint_that_answers_nothing_is_told(tmp_path: Path) -> None:
    with serving(lambda *_: error(500, "no memory")) as server:
        with pytest.raises(LlmError, match=r"gave no answer in 4 attempts.*the last: status 500: no memory"):
            label(config(server), tmp_path)
        assert len({text_of(body) for body in server.bodies}) == 5  # not all of them


def test_what_was_paid_for_and_says_nothing_is_kept_and_counted(tmp_path: Path) -> None:
    """A gateway whose filter leaves no choice, and one that answers in another form."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 0}
    odd = {TEXTS[3]: {"choices": [], "usage": usage}, TEXTS[4]: {"choices": [{"message": 7}], "usage": usage}}

    def rule(body: Body, number: int) -> Answer:
        return (200, {}, odd[text_of(body)]) if text_of(body) in odd else with_logprobs(body, number)

    for method in ("logprobs", "votes"):
        with serving(rule) as server:
            settings = config(server, method=method, samples=2)
            for _ in range(2):
                found, tally, _ = label(settings, tmp_path)
                assert tally.texts == {"answered": len(TEXTS) - 2, "unparsable": 2}
                assert tally.prompt_tokens > 2000
            assert len(found) == len(TEXTS) - 2
            assert set(server.asked().values()) == {1}


def test_a_server_that_refuses_several_answers_to_some_texts_is_not_paid_twice(tmp_path: Path) -> None:
    def rule(body: Body, number: int) -> Answer:
        refused = body.get("n", 1) > 1 and text_of(body) == TEXTS[3]
        return error(400, "too many tokens in all") if refused else with_votes(body, number)

    with serving(rule) as server:
        settings = config(server, method="votes", samples=3, concurrency=4)
        first, _, _ = label(settings, tmp_path)
        paid = server.statuses.count(200)
        again, tally, _ = label(settings, tmp_path)
        assert server.statuses.count(200) == paid
    assert tally.kept_before == tally.responses
    assert {prompt: votes.tolist() for prompt, votes in again.items()} == {p: v.tolist() for p, v in first.items()}


def test_several_answers_that_were_paid_for_at_a_time_are_kept_when_a_text_refuses_them_later(tmp_path: Path) -> None:
    def rule(body: Body, number: int) -> Answer:
        if text_of(body) == TEXTS[0]:
            return error(500, "busy") if first else error(400, "n") if body.get("n", 1) > 1 else with_votes(body, 0)
        return with_votes(body, number)

    first = True
    with serving(rule) as server:
        settings = config(server, method="votes", samples=3, concurrency=1, retries=0)
        label(settings, tmp_path)
        first = False
        _, tally, _ = label(settings, tmp_path)
    assert tally.texts == {"answered": len(TEXTS)}
    assert (tally.responses, tally.kept_before) == (len(TEXTS) - 1 + 3, len(TEXTS) - 1)


def test_a_choice_that_is_none_costs_only_itself(tmp_path: Path) -> None:
    def rule(body: Body, number: int) -> Answer:
        status, headers, found = with_votes(body, number)
        found["choices"][1:2] = [{"index": 1, "finish_reason": "error"}] * (body.get("n", 1) > 1)
        return status, headers, found

    with serving(rule) as server:
        found, tally, _ = label(config(server, method="votes", samples=3), tmp_path, PROMPTS[:2])
    assert tally.texts == {"answered": 2}
    assert tally.responses == 4  # two of three, and then the one that is missing
    assert set(map(tuple, found.values())) <= {(0.0, 1.0), (1.0, 0.0)}


@pytest.mark.parametrize("first", [with_logprobs(BODY, 0), FILTERED, error(400, "content_filter")])
def test_a_server_that_gives_fewer_alternatives_is_asked_for_those(tmp_path: Path, first: Answer) -> None:
    """Also where the first text is refused for itself."""

    def rule(body: Body, number: int) -> Answer:
        if text_of(body) == TEXTS[0] and first[0] != 200:
            return first
        many = body.get("top_logprobs", 0) > 5
        return error(400, "top_logprobs must be at most 5") if many else with_logprobs(body, number)

    for method in ("auto", "logprobs"):
        with serving(rule) as server:
            found, tally, used = label(config(server, method=method), tmp_path / method)
        assert used == "logprobs"
        assert len(found) == tally.texts["answered"] == len(TEXTS) - (first[0] != 200)


def test_an_endpoint_that_dies_half_way_costs_nothing_twice(tmp_path: Path) -> None:
    alive = [True]

    def rule(body: Body, number: int) -> Answer:
        if len(server.bodies) > 20:
            alive[0] = False
        return with_logprobs(body, number) if alive[0] else error(500, "out of memory")

    with serving(rule) as server:
        settings = config(server, concurrency=2)
        with pytest.raises(LlmError, match=r"gave no answer in 4 attempts.*out of memory; what was answered is kept"):
            label(settings, tmp_path)
        paid = server.asked()
        assert len(paid) >= 18
        server.rule = with_logprobs
        found, tally, _ = label(settings, tmp_path)
        assert set(server.asked().values()) == {1}
    assert len(found) == len(PROMPTS)
    assert tally.kept_before == len(paid)


def test_an_endpoint_that_answers_no_request_says_why(tmp_path: Path) -> None:
    with serving(lambda *_: error(400, "temperature is not supported")) as server:
        with pytest.raises(LlmError, match="answers none of the requests: status 400: temperature is not supported"):
            label(config(server), tmp_path)
        assert len(server.bodies) < len(PROMPTS)


def test_that_the_method_was_found_out_is_no_answer_to_what_is_asked_then(tmp_path: Path) -> None:
    """A server that answers the greedy request and none of those for votes."""

    def rule(body: Body, number: int) -> Answer:
        return with_votes(body, number) if "logprobs" in body else error(400, "temperature must be 0")

    with serving(rule) as server:
        with pytest.raises(LlmError, match="answers none of the requests: status 400: temperature must be 0"):
            label(config(server), tmp_path)
        assert len(server.bodies) < len(PROMPTS)
