"""What an explanation may cost, and who goes before it."""

import asyncio
import hashlib
import threading

import numpy as np
import pytest

from service import app as app_module
from service.engine.queue import Priority
from tests.service.helpers import changed, post_scope, running, settings_for, until
from tests.service.test_explain import TEXT, explain, samples


@pytest.mark.parametrize(
    "bounds",
    [
        {"max_explain_words": 3},
        {"queue_capacity": 8, "max_inputs": 1},  # half of it: the text and three variants
        {"queue_capacity_tokens": 112},  # seven times the text, of which half
        {"queue_capacity": 16, "max_inputs": 1, "explain_concurrency": 2},
        {"max_body_bytes": 240},  # characters of all variants together; the text has 59
    ],
)
def test_of_too_many_words_neighbors_are_explained_together(tiny_bundle, bounds):
    text = "the movie was good the plot was very dull and not a great film"
    found = explain(tiny_bundle, {"inputs": text}, **bounds).json()
    words = found["words"]
    assert 2 <= len(words) <= 4
    assert all(text[word["start"] : word["end"]] == word["text"] for word in words)
    assert " ".join(word["text"] for word in words) == text


def test_a_key_is_needed_and_pays_for_all_that_is_read(tiny_bundle, tmp_path):
    def entry(name: str, more: str = "") -> str:
        return f'[[keys]]\nid = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n{more}\n'

    (tmp_path / "keys.toml").write_text(entry("full", "tokens_per_minute = 10") + entry("other", 'models = ["x"]'))

    async def run():
        async with running(settings_for(tiny_bundle, keys_file=tmp_path / "keys.toml")) as client:
            answers = [
                await client.post("/v1/explain", json={"inputs": "not very good"}, headers=headers)
                for headers in [{}, *({"Authorization": f"Bearer {name}"} for name in ("other", "full", "full"))]
            ]
            return answers, await samples(client)

    answers, metrics = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [401, 403, 200, 429]
    assert answers[3].json()["error"]["code"] == "rate_limited"
    assert metrics[("limbeck_key_tokens_total", "full")] == 5 + 3 * 4  # the text, and three times without a word


class Steps:
    """Lets a model's calls through one by one, once it is on; `rows` are the texts of each call."""

    def __init__(self, monkeypatch) -> None:
        self.on = False
        self.rows: list[list[int]] = []
        self._permits = threading.Semaphore(0)
        real = app_module.Model.infer

        def infer(model, encodings):
            if self.on:
                self.rows.append([encoding.tokens for encoding in encodings])
                assert self._permits.acquire(timeout=60)
            return real(model, encodings)

        monkeypatch.setattr(app_module.Model, "infer", infer)

    def let(self, calls: int = 1000) -> None:
        self._permits.release(calls)


@pytest.fixture
def steps(monkeypatch):
    found = Steps(monkeypatch)
    yield found
    found.let()


def test_who_classifies_goes_before_an_explanation_that_runs(tiny_bundle, steps):
    """Of all the calls that an explanation takes, at most the one under way and the one prepared go first."""
    words = 40

    async def run():
        bundle = changed(tiny_bundle, tiny_bundle.folder.parent / "long", max_length=64)
        settings = settings_for(bundle, max_batch_size=4, max_padding_tokens=0, bulk_aging_ms=60_000)
        async with running(settings) as client:
            steps.on = True
            explaining = asyncio.create_task(client.post("/v1/explain", json={"inputs": "good " * words}))
            await until(lambda: steps.rows)
            waited = []
            for _ in range(3):
                began = len(steps.rows)
                asked = asyncio.create_task(client.post("/v1/classify", json={"inputs": "dull plot"}))
                waiting = client.app.state.registry.get().batcher._queue._waiting[Priority.INTERACTIVE]
                await until(lambda waiting=waiting: waiting)
                while not asked.done():
                    calls = len(steps.rows)
                    steps.let(1)
                    await until(lambda calls=calls, asked=asked: len(steps.rows) > calls or asked.done())
                waited.append(len(steps.rows) - began)
                assert asked.result().status_code == 200
                assert not explaining.done()
            steps.let()
            return waited, await explaining

    waited, explained = asyncio.run(run())
    assert max(waited) <= 3
    assert len(explained.json()["words"]) == words
    assert len(steps.rows) > 10


def test_more_at_once_than_may_be_are_refused_and_classification_is_not(tiny_bundle, steps):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            steps.on = True
            first = asyncio.create_task(client.post("/v1/explain", json={"inputs": "good film"}))
            await until(lambda: steps.rows)
            refused = await client.post("/v1/explain", json={"inputs": "good film"})
            classified = asyncio.create_task(client.post("/v1/classify", json={"inputs": "good film"}))
            steps.let()
            answers = [await first, await classified, await client.post("/v1/explain", json={"inputs": "good film"})]
            return refused, answers, await samples(client)

    refused, answers, metrics = asyncio.run(run())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "explain_busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert metrics[("limbeck_rejected_total", "explain_busy")] == 1


def test_a_deadline_ends_it_and_gives_the_place_back(tiny_bundle, steps):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            steps.on = True
            held = asyncio.create_task(client.post("/v1/classify", json={"inputs": "good"}))
            await until(lambda: steps.rows)
            late = [
                await client.post("/v1/explain", json={"inputs": "good film", "timeout_ms": 50}),
                await client.post("/v1/explain", json={"inputs": "a"}, headers={"x-request-timeout-ms": "50"}),
            ]
            steps.let()
            assert (await held).status_code == 200
            ran = [length for rows in steps.rows for length in rows]
            return late, ran, (await client.post("/v1/explain", json={"inputs": "good film"})).status_code

    late, ran, again = asyncio.run(run())
    assert [(one.status_code, one.json()["error"]["code"]) for one in late] == [(504, "deadline_exceeded")] * 2
    assert ran == [3]  # the one classified; nothing of the explanations
    assert again == 200


def test_a_client_that_leaves_is_not_worked_for(tiny_bundle, steps):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            steps.on = True
            held = asyncio.create_task(client.post("/v1/classify", json={"inputs": "good"}))
            await until(lambda: steps.rows)
            messages: asyncio.Queue[dict] = asyncio.Queue()
            messages.put_nowait({"type": "http.request", "body": b'{"inputs": "a film"}', "more_body": False})

            async def ignore(_message):
                pass

            scope = post_scope("/v1/explain", [(b"content-type", b"application/json")])
            leaving = asyncio.create_task(client.app(scope, messages.get, ignore))
            queue = client.app.state.registry.get().batcher._queue
            await until(lambda: queue.waiting_entries == 3)
            messages.put_nowait({"type": "http.disconnect"})
            await leaving
            assert queue.waiting_entries == 0
            steps.let()
            assert (await held).status_code == 200
            return (await client.post("/v1/explain", json={"inputs": "good film"})).status_code

    assert asyncio.run(run()) == 200


def test_a_full_queue_refuses_it_like_anything_else(tiny_bundle, steps):
    async def run():
        async with running(settings_for(tiny_bundle, queue_capacity=8, max_inputs=8)) as client:
            steps.on = True
            held = asyncio.create_task(client.post("/v1/classify", json={"inputs": "good"}))
            await until(lambda: steps.rows)
            waiting = asyncio.create_task(client.post("/v1/classify", json={"inputs": ["good"] * 7}))
            queue = client.app.state.registry.get().batcher._queue
            await until(lambda: queue.waiting_entries == 7)
            refused = await client.post("/v1/explain", json={"inputs": "good film"})
            steps.let()
            assert [(await held).status_code, (await waiting).status_code] == [200, 200]
            return refused, (await client.post("/v1/explain", json={"inputs": "good film"})).status_code

    refused, again = asyncio.run(run())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert again == 200


def test_a_megabyte_of_text_costs_no_more_than_a_request_of_a_megabyte(tiny_bundle):
    """Long words the model does not know are one token each, and a variant for each would be as long as the text."""
    text = " ".join(["x" * 9_000] * 14)
    found = explain(tiny_bundle, {"inputs": text}, max_body_bytes=400_000).json()
    assert found["truncated"] is False
    assert len(found["words"]) == 3  # as many as go into 400,000 characters
    assert sum(word["end"] - word["start"] for word in found["words"]) >= 14 * 9_000


def test_several_at_once_answer_as_one_alone(tiny_bundle):
    """Several explanations side by side, where they may be."""

    async def run():
        async with running(settings_for(tiny_bundle, explain_concurrency=4, queue_capacity=4096)) as client:
            alone = (await client.post("/v1/explain", json={"inputs": TEXT})).json()
            together = await asyncio.gather(*(client.post("/v1/explain", json={"inputs": TEXT}) for _ in range(4)))
            return alone, [one.json() for one in together]

    alone, together = asyncio.run(run())
    for one in together:
        assert [word["text"] for word in one["words"]] == [word["text"] for word in alone["words"]]
        np.testing.assert_allclose(
            [word["effect"] for word in one["words"]], [word["effect"] for word in alone["words"]], atol=1e-6
        )
