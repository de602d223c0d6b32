"""Connections: which way a request takes, that answers keep their order, clients that leave, the end of the service."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.engine.batcher import Batcher
from service.protocol import Protocol
from tests.service.helpers import Wire, label_request, post, running, settings_for, until
from tests.support.bundles import TEXTS

JSON = ("Content-Type", "application/json")
LARGE = json.dumps({"inputs": "word " * 60_000}).encode()


@contextlib.asynccontextmanager
async def served(app, **options) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=Protocol, ws="none", log_config=None, access_log=False, **options)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    await until(lambda: server.started and app.state.registry.ready)
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


class HeldBatches:
    """Lets a batcher form batches only after `release`."""

    def __init__(self, batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batcher = batcher
        self._patch = monkeypatch
        monkeypatch.setattr(batcher, "_dispatch", lambda: None)

    def release(self) -> None:
        self._patch.undo()
        self.batcher._dispatch()


def hold(client_or_app, monkeypatch) -> HeldBatches:
    return HeldBatches(getattr(client_or_app, "app", client_or_app).state.registry.get().batcher, monkeypatch)


async def waiting(held: HeldBatches, entries: int) -> None:
    await until(lambda: held.batcher._queue.waiting_entries == entries)


def test_a_full_queue_refuses_requests_for_labels_alone(tiny_bundle, monkeypatch) -> None:
    """What waits is answered, what comes on top is refused, the operator's pages are there, connections stay."""

    async def run():
        app = create_app(settings_for(tiny_bundle, queue_capacity=2, max_inputs=2))
        async with (
            served(app) as (_, port),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as first,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            held = hold(app, monkeypatch)
            accepted = asyncio.create_task(first.post("/v1/classify", json={"inputs": TEXTS[:2]}))
            await until(lambda: held.batcher.full)
            refused = await client.post("/v1/classify", json={"inputs": TEXTS[:1]})
            named = await client.post("/v1/models/tiny/classify?x=1", json={"inputs": TEXTS[:1]})
            large = await client.post("/v1/classify", content=LARGE, headers=dict([JSON]))
            unknown = await client.post("/v1/models/none/classify", json={"inputs": TEXTS[:1]})
            metrics = await client.get("/metrics")
            live = await client.get("/health/live")
            held.release()
            sockets = len(client._transport._pool.connections)
            return refused, named, large, unknown, metrics.text, live, await accepted, sockets

    refused, named, large, unknown, metrics, live, accepted, sockets = asyncio.run(run())
    assert refused.status_code == named.status_code == large.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "date" in refused.headers
    assert unknown.status_code == 404
    assert live.status_code == accepted.status_code == 200
    assert sockets == 1
    assert 'limbeck_rejected_total{reason="queue_full"} 3.0' in metrics
    assert (
        'limbeck_requests_total{dialect="native",model="tiny",route="/v1/classify",status="429",version="1"} 2.0'
        in metrics
    )
    named = 'dialect="native",model="tiny",route="/v1/models/{model}/classify",status="429",version="1"'
    assert f"limbeck_requests_total{{{named}}} 1.0" in metrics


@pytest.mark.parametrize("ill", ["dead", "draining"])
def test_a_full_queue_is_not_what_an_ill_engine_is_refused_with(tiny_bundle, monkeypatch, ill) -> None:
    async def run():
        async with running(settings_for(tiny_bundle, queue_capacity=1, max_inputs=1, shutdown_timeout_s=1)) as client:
            held = hold(client, monkeypatch)
            first, second = Wire(client.app), Wire(client.app)
            first.protocol.data_received(label_request("a"))
            await until(lambda: held.batcher.full)
            if ill == "dead":
                monkeypatch.setattr(held.batcher._owner, "alive", False)
            else:
                monkeypatch.setattr(held.batcher, "_closing", True)
            second.protocol.data_received(label_request("b"))
            return await second.answer()

    status, _, body = asyncio.run(run())
    assert (status, json.loads(body)["error"]["code"]) == (503, "not_ready" if ill == "dead" else "draining")


def test_a_refusal_comes_when_all_of_the_request_is_there(tiny_bundle, monkeypatch) -> None:
    async def run():
        async with running(settings_for(tiny_bundle, queue_capacity=1, max_inputs=1)) as client:
            held = hold(client, monkeypatch)
            first, second = Wire(client.app), Wire(client.app)
            first.protocol.data_received(label_request("a"))
            await until(lambda: held.batcher.full)
            whole = label_request("some text")
            second.protocol.data_received(whole[:-4])
            await asyncio.sleep(0.01)
            early = second.sent
            second.protocol.data_received(whole[-4:])
            refused = await second.answer()
            held.release()
            await until(lambda: not held.batcher.full)
            second.protocol.data_received(whole)
            return early, refused, await first.answer(), await second.answer()

    early, *answers = asyncio.run(run())
    assert early == b""
    assert [status for status, *_ in answers] == [429, 200, 200]


@pytest.mark.parametrize("pieces", ["at once", "later", "a part later", "with the end of the first"])
def test_answers_keep_the_order_of_their_requests(tiny_bundle, monkeypatch, pieces) -> None:
    """Several requests sent without waiting: ordinary ones, others, one in chunks."""
    requests = [
        label_request("a good movie"),
        b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n",
        label_request("a bad movie"),
        post("/v1/classify", b'{"inputs": "the plot"}', JSON, declared=False),
        post("/v1/none", b"{}", JSON),
    ]

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            alone = []
            for request in requests:
                wire = Wire(client.app)
                wire.protocol.data_received(request)
                alone.append(await wire.answer())
            held = hold(client, monkeypatch)
            wire = Wire(client.app)
            stream = b"".join(requests)
            first = len(requests[0])
            cut = {"at once": len(stream), "later": first, "a part later": first + 9}.get(pieces, first - 3)
            wire.protocol.data_received(stream[:cut])
            if cut >= first:
                await waiting(held, 1)
            if stream[cut:]:
                wire.protocol.data_received(stream[cut:])
                await waiting(held, 1)
                assert wire.reading_paused or cut < first
            held.release()
            together = [await wire.answer() for _ in requests]
            wire.protocol.data_received(requests[0])
            return alone, [*together, await wire.answer()], wire.reading_paused

    alone, together, paused = asyncio.run(run())
    assert [status for status, *_ in alone] == [200, 200, 200, 200, 404]
    assert [(status, body) for status, _, body in together] == [
        (status, body) for status, _, body in [*alone, alone[0]]
    ]
    assert not paused


def test_an_ordinary_request_waits_for_the_one_before_it(tiny_bundle, monkeypatch) -> None:
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            held = hold(client, monkeypatch)
            wire = Wire(client.app)
            wire.protocol.data_received(post("/v1/classify", b'{"inputs": ["a", "b"]}', JSON, declared=False))
            await waiting(held, 2)
            wire.protocol.data_received(label_request("a"))
            await asyncio.sleep(0.02)
            behind = held.batcher._queue.waiting_entries
            held.release()
            return behind, await wire.answer(), await wire.answer()

    behind, *answers = asyncio.run(run())
    assert behind == 2
    assert [len(json.loads(body)["results"]) for _, _, body in answers] == [2, 1]


def test_a_body_that_looks_like_a_request_is_none(tiny_bundle) -> None:
    """An answer may come before the body that it does not need."""

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            wire = Wire(client.app)
            head, _, _ = post("/v1/none", label_request("a"), JSON).partition(b"POST /v1/classify")
            wire.protocol.data_received(head)
            early = await wire.answer()
            wire.protocol.data_received(label_request("a"))
            await asyncio.sleep(0.05)
            nothing = wire.sent
            wire.protocol.data_received(label_request("b"))
            return early, nothing, await wire.answer()

    (early, _, _), nothing, (status, _, _) = asyncio.run(run())
    assert (early, nothing, status) == (404, b"", 200)


def test_a_client_that_wants_the_connection_closed_gets_that(tiny_bundle) -> None:
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            wire = Wire(client.app)
            wire.protocol.data_received(post("/v1/classify", b'{"inputs": "a"}', JSON, ("Connection", "close")))
            return await wire.answer(), wire.closed

    (status, headers, _), closed = asyncio.run(run())
    assert (status, headers["connection"], closed) == (200, "close", True)


def test_work_of_a_client_that_leaves_is_not_run(tiny_bundle, monkeypatch) -> None:
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            held = hold(client, monkeypatch)
            leaving, staying = Wire(client.app), Wire(client.app)
            leaving.protocol.data_received(label_request("a"))
            staying.protocol.data_received(label_request("b"))
            await waiting(held, 2)
            leaving.close()
            leaving.protocol.connection_lost(None)
            await waiting(held, 1)
            held.release()
            answer = await staying.answer()
            return answer, leaving.sent, (await client.get("/metrics")).text

    (status, _, _), sent, metrics = asyncio.run(run())
    assert (status, sent) == (200, b"")
    assert 'limbeck_cancelled_entries_total{model="tiny",version="1"} 1.0' in metrics
    assert (
        'limbeck_requests_total{dialect="native",model="tiny",route="/v1/classify",status="499",version="1"} 1.0'
        in metrics
    )


def test_idle_connections_are_closed_and_others_are_not(tiny_bundle, monkeypatch) -> None:
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            idle, busy, waits = wires = [Wire(client.app) for _ in range(3)]
            for wire in wires:
                wire.protocol.timeout_keep_alive = 0.2
                wire.protocol.data_received(label_request("a"))
                await wire.answer()
            held = None
            for _ in range(8):
                await asyncio.sleep(0.05)
                busy.protocol.data_received(label_request("b"))
                await busy.answer()
                if held is None:
                    waits.protocol.data_received(post("/v1/classify", b'{"inputs": "a"}', JSON)[:-1])
                    held = True
            before = idle.closed, busy.closed, waits.closed
            waits.protocol.data_received(b"}")
            await waits.answer()
            await until(lambda: waits.closed and busy.closed, 2)
            return before

    assert asyncio.run(run()) == (True, False, False)


def test_the_end_of_the_service_waits_for_answers_and_then_closes(tiny_bundle, monkeypatch) -> None:
    async def run():
        app = create_app(settings_for(tiny_bundle))
        async with served(app) as (server, port):
            held = hold(app, monkeypatch)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(label_request("a"))
            await waiting(held, 1)
            server.should_exit = True
            await asyncio.sleep(0.2)
            held.release()
            received = await reader.read()
            writer.close()
            return received

    received = asyncio.run(run())
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close\r\n" in received


def test_a_request_that_is_not_ordinary_is_the_last_when_the_service_ends(tiny_bundle) -> None:
    """Its body comes after the end has begun; only then it is clear that the framework has to answer."""

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            wire = Wire(client.app)
            whole = post("/v1/classify", b'{"inputs": "a", "truncate": "tail"}', JSON)
            wire.protocol.data_received(whole[:-5])
            wire.protocol.shutdown()
            assert not wire.closed
            wire.protocol.data_received(whole[-5:])
            answer = await wire.answer()
            await until(lambda: wire.closed, 2)
            return answer

    status, headers, _ = asyncio.run(run())
    assert (status, headers["connection"]) == (200, "close")


def test_who_waits_longer_than_the_end_takes_gets_503(tiny_bundle, monkeypatch) -> None:
    async def run():
        app = create_app(settings_for(tiny_bundle, shutdown_timeout_s=600))  # of the engine; uvicorn's is one second
        async with asyncio.timeout(20), served(app, timeout_graceful_shutdown=1) as (server, port):
            held = hold(app, monkeypatch)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(label_request("a"))
            await waiting(held, 1)
            server.should_exit = True
            received = await reader.read()
            writer.close()
            return received

    received = asyncio.run(run())
    assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "draining"
