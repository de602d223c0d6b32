"""The request log: one line of JSON for each request, and never a text."""

import asyncio
import contextlib
import json
import os
import threading

import pytest

from service import app as app_module
from service import request_log
from service.request_log import RequestLog
from service.visits import Visit
from tests.service.helpers import Wire, label_request, post, running, settings_for


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


def lines_of(reading: int) -> list[dict]:
    os.set_blocking(reading, False)
    return [json.loads(line) for line in os.read(reading, 1 << 20).splitlines()]


@pytest.fixture
def logged(pipe, monkeypatch):
    monkeypatch.setattr(app_module, "RequestLog", lambda share: RequestLog(share, pipe[1]))
    return pipe[0]


def test_each_request_has_a_line_on_whatever_way_it_came(tiny_bundle, logged):
    async def run():
        async with running(settings_for(tiny_bundle, request_log=True)) as client:
            wire = Wire(client.app, asyncio.get_running_loop())
            wire.protocol.data_received(label_request("not very good"))
            _, fast, _ = await wire.answer()
            body = json.dumps({"inputs": ["good", "bad movie"]}).encode()
            named = (("Content-Type", "application/json"), ("X-Request-ID", "abc-1"))
            wire.protocol.data_received(post("/v1/classify", body, *named))
            _, mine, _ = await wire.answer()
            slow = await client.post("/predict", json={"inputs": "dull plot"}, headers={"X-Request-ID": "no\ttabs"})
            await client.post("/", json={"inputs": "dull plot", "parameters": {}})
            await client.post("/v1/classify", json={"inputs": ""})
            await client.get("/invented?secret=1")
            return fast["x-request-id"], mine["x-request-id"], slow.headers["x-request-id"]

    ids = asyncio.run(run())
    lines = lines_of(logged)
    told = [
        (line.get("dialect"), line["route"], line["status"], line.get("inputs"), line.get("tokens")) for line in lines
    ]
    assert told == [
        ("native", "/v1/classify", 200, 1, 5),
        ("native", "/v1/classify", 200, 2, 7),
        ("tei", "/predict", 200, 1, 4),
        ("huggingface", "/", 200, 1, 4),
        ("native", "/v1/classify", 422, None, None),
        (None, "unmatched", 404, None, None),
    ]
    assert [line["request_id"] for line in lines[:3]] == list(ids)
    assert ids[1] == "abc-1"
    assert ids[2] != "no\ttabs"
    assert lines[4]["error"] == "invalid_input"
    assert lines[5]["error"] == "not_found"
    assert all(line["duration_ms"] > 0 for line in lines)
    assert lines[0]["inference_ms"] > 0
    assert lines[0]["model"] == "tiny"
    assert lines[0]["version"] == "1"
    everything = json.dumps(lines)
    for text in ("good", "dull", "movie", "secret", "invented"):
        assert text not in everything


def test_a_reader_that_stands_still_holds_nothing_up(pipe, monkeypatch):
    monkeypatch.setattr(request_log, "_MOST_WAITING", 5000)
    log = RequestLog(0, pipe[1])  # a pipe holds 64 KiB
    for _ in range(30_000):
        log.add(Visit(0.0, request_id="r"), "POST", 200, 0.001)
    assert 20_000 < log.dropped < 30_000
    kept = 30_000 - log.dropped
    found = b""
    while found.count(b"\n") < kept:
        found += os.read(pipe[0], 1 << 20)
    log.close()
    assert found.count(b"\n") == kept


def test_a_reader_that_is_gone_is_counted(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    log = RequestLog(0, writing)
    log.add(Visit(0.0, request_id="r"), "POST", 200, 0.001)
    log.close()
    os.close(writing)
    assert log.dropped == 1


def test_without_a_log_answers_have_no_id(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            return await client.post("/v1/classify", json={"inputs": "good"}, headers={"X-Request-ID": "abc"})

    assert "x-request-id" not in asyncio.run(run()).headers


def test_texts_are_told_only_of_the_share_that_is_asked_for_and_masked(tiny_bundle, logged):
    texts = ["write to ada@example.org", "card 4111 1111 1111 1111 ok", "a good movie"]

    async def run(share):
        async with running(settings_for(tiny_bundle, request_log=True, log_texts=share)) as client:
            wire = Wire(client.app, asyncio.get_running_loop())
            for text in texts * 10:
                wire.protocol.data_received(label_request(text))
                await wire.answer()
            await client.post("/predict", json={"inputs": texts[0]})

    asyncio.run(run(1.0))
    lines = lines_of(logged)
    assert [line["texts"] for line in lines[:3]] == [["write to [EMAIL]"], ["card [CARD] ok"], ["a good movie"]]
    assert lines[-1]["texts"] == ["write to [EMAIL]"]
    asyncio.run(run(0.5))
    told = [line for line in lines_of(logged) if "texts" in line]
    assert 3 <= len(told) <= 28  # of 31: one run in ten million is outside


def test_what_is_cut_is_masked_before(tiny_bundle, logged):
    """A card number that stands across the place where a long text is cut."""
    text = "a@b.example " * 160 + " 4111 1111 1111 1111 " * 20  # tags are shorter than what they stand for

    async def run():
        async with running(settings_for(tiny_bundle, request_log=True, log_texts=1.0)) as client:
            await client.post("/v1/classify", json={"inputs": text})

    asyncio.run(run())
    (line,) = lines_of(logged)
    assert "1111" not in line["texts"][0]
    assert line["texts"][0].startswith("[EMAIL] [EMAIL]")
    assert len(line["texts"][0]) <= 2000


def test_texts_that_wait_are_bounded(pipe, monkeypatch):
    """A reader that stands still, and large requests."""
    monkeypatch.setattr(request_log, "_MOST_WAITING_CHARACTERS", 200_000)
    log = RequestLog(1.0, pipe[1])
    for _ in range(15_000):
        log.add(Visit(0.0, request_id="r", texts=["long text " * 100_000] * 20), "POST", 200, 0.001)
    held = sum(len(text) for _, texts in log._waiting for text in texts)
    assert held <= request_log._MOST_WAITING_CHARACTERS
    assert len(log._waiting) > 5000, "lines are kept; it is texts that go"
    closing = threading.Thread(target=log.close)
    closing.start()
    while closing.is_alive() or log._thread.is_alive():
        os.set_blocking(pipe[0], False)
        with contextlib.suppress(BlockingIOError):
            os.read(pipe[0], 1 << 20)


def test_lines_of_several_workers_stay_whole():
    """A pipe keeps pieces of up to 4,096 bytes together; two logs write to one at the same time."""
    reading, writing = os.pipe()
    logs = [RequestLog(1.0, writing), RequestLog(1.0, writing)]
    for number in range(2000):
        for log in logs:
            texts = ["été 🎬 " * 300] if number % 10 == 0 else None
            log.add(Visit(0.0, request_id=f"r{number}", texts=texts), "POST", 200, 0.001)
    threading.Thread(target=lambda: [log.close() for log in logs] and os.close(writing)).start()
    with os.fdopen(reading, "rb") as file:
        lines = file.read().splitlines()
    assert len(lines) == 4000
    for line in lines:
        json.loads(line)
        assert len(line) < 4096
