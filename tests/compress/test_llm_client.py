"""The endpoint's client, against a server that speaks the same API and misbehaves."""

import asyncio
import contextlib
import email.utils
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from compress import llm_client
from compress.errors import LlmError
from compress.llm_client import Endpoint, ExhaustedError, FilteredError, RejectedError, read_key
from compress.recipe_llm import Llm
from tests.support.llm_asking import BODY, LABELS, PROMPTS, ask, config, label, scripted
from tests.support.llm_server import KEY, Answer, Body, error, serving, with_logprobs

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_the_request_is_that_of_openais_own_client(tmp_path: Path) -> None:
    """Path, body and authorization, as the official library sends them to the same server."""
    openai = pytest.importorskip("openai", reason="needs the openai package")
    with serving() as server:
        settings = config(server, method="logprobs")
        label(settings.model_copy(update={"api_key_env": None}), tmp_path, PROMPTS[:1])
        ask(settings, server.bodies[0])
        with openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
            answer = client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": PROMPTS[0]}],
                max_tokens=16,
                temperature=0.0,
                logprobs=True,
                top_logprobs=20,
            )
    assert answer.choices[0].message.content in LABELS  # the server's answers are what that library parses
    assert answer.choices[0].logprobs.content[0].top_logprobs[1].logprob < 0
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]
    own, theirs = server.headers[1:]
    for name in ("authorization", "content-type"):
        assert own[name] == theirs[name]
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with serving(scripted(error(status, "later"), error(status, "later"))) as server:
        assert ask(config(server))["choices"][0]["content"] == "positive"
        assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "nonsense",
    [b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b'{"error": "busy"}'],
)
def test_nonsense_is_tried_again_and_then_given_up(nonsense: bytes) -> None:
    with serving(scripted((200, {}, nonsense))) as server:
        assert ask(config(server))["choices"][0]["content"] == "positive"
    with serving(lambda *_: (200, {}, nonsense)) as server:
        with pytest.raises(ExhaustedError, match="a response that is no chat completion"):
            ask(config(server))
        assert len(server.bodies) == 4


def test_an_answer_that_breaks_off_or_does_not_come_is_tried_again() -> None:
    with serving(scripted((0, {}, b""))) as server:
        assert ask(config(server))["choices"][0]["content"] == "positive"

    def slow(body: Body, number: int) -> Answer:
        time.sleep(0.5 if number == 0 else 0)
        return with_logprobs(body, number)

    with serving(slow) as server:
        assert ask(config(server, timeout_s=0.1))["choices"][0]["content"] == "positive"
        assert len(server.bodies) == 2


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for() -> None:
    """Each byte in time, and all of them not."""
    given_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n")
                for _ in range(50):
                    connection.sendall(b" ")
                    if given_up.wait(0.05):
                        break

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        settings = Llm(endpoint=url, model="m", retries=0, timeout_s=0.3)
        try:
            with pytest.raises(ExhaustedError, match=r"no answer within 0.3 s"):
                ask(settings)
        finally:
            given_up.set()
            thread.join()


@pytest.mark.parametrize("after", ["0", "Mon, 01 Jan 2024 00:00:00 GMT"])
def test_being_asked_to_wait_no_time_still_makes_pauses(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    """They grow: 0.05, 0.1, 0.2 and 0.4 s, at least half of each."""
    monkeypatch.setattr(llm_client, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(llm_client, "_LONGEST_PAUSE_S", 1.0)
    with serving(scripted(*[error(429, "slow down", **{"retry-after": after})] * 4)) as server:
        assert ask(config(server))["choices"]
    assert server.times[-1] - server.times[0] >= 0.37


def test_who_waits_for_his_slot_waits_as_the_endpoint_asks_meanwhile() -> None:
    """The second request has its slot after half a second, and comes no earlier than the wait is over."""
    with serving(scripted(error(429, "slow down", **{"retry-after": "1"}))) as server:

        async def both() -> None:
            async with Endpoint(config(server, requests_per_minute=120.0), None, lambda _: None) as endpoint:
                await asyncio.gather(endpoint.ask(BODY), endpoint.ask(BODY))

        asyncio.run(both())
    assert len(server.times) == 3
    assert server.times[1] - server.times[0] >= 0.9


@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:9", "socks4://me:secret@127.0.0.1:9", "http://h:abc"])
def test_a_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)  # what httpx needs for SOCKS
    settings = Llm(endpoint="https://llm.example.com/v1", model="m")
    with pytest.raises(LlmError, match=r"the proxy of the environment \(HTTP_PROXY.*cannot be used: ") as caught:
        ask(settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_all_wait_as_long_as_the_endpoint_asks(tmp_path: Path, form: str) -> None:
    """After the 429 no request comes before its time, of no worker."""
    limited_at: list[float] = []

    def rule(body: Body, number: int) -> Answer:
        if not limited_at and len(server.bodies) > 5:
            limited_at.append(time.monotonic())
            after = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
            return error(429, "slow down", **{"retry-after": after})
        return with_logprobs(body, number)

    with serving(rule, delay_s=0.01) as server:
        found, _, _ = label(config(server, concurrency=4), tmp_path)
    assert len(found) == len(PROMPTS)
    late = [at for at in server.times if at > limited_at[0] + 0.1]  # what was under way then is not called back
    assert late
    assert min(late) >= limited_at[0] + 0.9


def test_being_told_to_wait_is_no_failure(tmp_path: Path) -> None:
    """More often than there are retries; and it is told."""
    told: list[str] = []
    with serving(scripted(*[error(429, "slow down", **{"retry-after": "0"})] * 9)) as server:
        assert ask(config(server, retries=0), tell=told.append)["choices"]
        assert len(server.bodies) == 10
    with serving(scripted(error(429, "slow down", **{"retry-after": "1.2"}))) as server:
        ask(config(server), tell=told.append)
    assert told == ["status 429: slow down; waiting 1 s"]


def test_an_endpoint_that_asks_to_wait_for_hours_is_given_up() -> None:
    with (
        serving(lambda *_: error(429, "come back tomorrow", **{"retry-after": "86400"})) as server,
        pytest.raises(LlmError, match="come back tomorrow; it asks to wait 86400 s more; what was answered is kept"),
    ):
        ask(config(server))


def test_the_rate_and_the_number_side_by_side_are_bounded(tmp_path: Path) -> None:
    with serving(delay_s=0.02) as server:
        label(config(server, concurrency=3), tmp_path / "1", PROMPTS[:12])
        assert server.most_at_once == 3
    with serving() as server:
        label(config(server, requests_per_minute=1200.0), tmp_path / "2", PROMPTS[:8])
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) >= 0.9 * 0.05 * len(gaps)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), LlmError, r"refused the key: .*provided: \(the key\)"),
        (error(403, "no"), LlmError, "refused the key"),
        (error(429, "insufficient_quota: pay first"), LlmError, "pay first"),
        (error(404, "no model m"), LlmError, "no model m; expected the base URL of the API, mostly ending in /v1"),
        ((307, {"location": "http://127.0.0.1:9/v1"}, {}), LlmError, "not a redirect"),
        (error(400, "too long"), RejectedError, "status 400: too long"),
        (error(422, "wrong"), RejectedError, "status 422: wrong"),
        ((400, {}, {"error": {"message": "no", "code": "content_filter"}}), FilteredError, "status 400: no"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(answer: Answer, kind: type[Exception], message: str) -> None:
    with serving(lambda *_: answer) as server:
        with pytest.raises(kind, match=message) as caught:
            ask(config(server))
        assert len(server.bodies) == 1
    assert KEY not in str(caught.value)


def test_an_endpoint_that_is_not_there() -> None:
    with serving() as server:
        settings = config(server)
    with pytest.raises(ExhaustedError):
        ask(settings)


def test_fields_of_the_request_can_be_added_and_taken_out(tmp_path: Path) -> None:
    with serving() as server:
        changes = {"max_tokens": None, "max_completion_tokens": 64, "reasoning_effort": "low"}
        label(config(server, request=changes), tmp_path, PROMPTS[:1])
    body = server.bodies[0]
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["reasoning_effort"]) == (64, "low")


def test_the_key_is_read_where_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("A_KEY", f" {KEY}\n")
        (tmp_path / "key.txt").write_text(KEY + "\n")
        assert read_key(config(server, api_key_env="A_KEY"), tmp_path) == KEY
        assert read_key(config(server, api_key_file="key.txt"), tmp_path) == KEY
        assert read_key(config(server), tmp_path) is None
        label(config(server, api_key_env="A_KEY"), tmp_path, PROMPTS[:1])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize("content", ["", "two words", "line\nline", "caf\xe9", "\x00"])
def test_a_key_that_is_none_is_told_without_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.txt").write_text(content, encoding="utf-8")
    with serving() as server:
        for name in ("key.txt", "nowhere.txt"):
            with pytest.raises(
                LlmError, match=r"which teacher.llm.api_key_file names, (holds no key|cannot be read)"
            ) as e:
                read_key(config(server, api_key_file=name), tmp_path)
            assert not content or content not in str(e.value)
