"""Refusals below the app, over real connections: who gets one, and that the connection goes on as before."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.responses import JSONResponse

from service.app import create_app
from service.protocol import Protocol
from tests.service.helpers import settings_for, until
from tests.support.bundles import TEXTS

LARGE = b"x" * 300_000


class App:
    """Echoes bodies when `go` is set, and refuses what is posted to /full."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()

    def refusal(self, method: bytes, url: bytes) -> JSONResponse | None:
        if (method, url) != (b"POST", b"/full"):
            return None
        return JSONResponse({"error": "full"}, 429, {"Retry-After": "7"})

    async def __call__(self, scope, receive, send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.seen.append(body)
        await self.go.wait()
        await JSONResponse({"got": body.decode()})(scope, receive, send)


@contextlib.asynccontextmanager
async def served(app, lifespan: str = "off") -> AsyncIterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=Protocol, ws="none", lifespan=lifespan, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    await until(lambda: server.started)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def request(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: t", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def test_a_refusal_does_not_reach_the_app_and_the_connection_stays() -> None:
    async def run():
        app = App()
        async with served(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            refused = await client.post("/full", content=b"a text")
            large = await client.post("/full", content=LARGE)
            fine = await client.post("/free", content=b"another")
            sockets = len(client._transport._pool.connections)
        return app, refused, large, fine, sockets

    app, refused, large, fine, sockets = asyncio.run(run())
    assert refused.status_code == large.status_code == 429
    assert refused.json() == {"error": "full"}
    assert refused.headers["retry-after"] == "7"
    assert "date" in refused.headers
    assert fine.json() == {"got": "another"}
    assert app.seen == [b"another"]
    assert sockets == 1


def test_a_refusal_comes_when_all_of_the_request_is_there() -> None:
    async def run():
        async with served(App()) as port, connection(port) as (reader, writer):
            whole = request("/full", b"0123456789")
            writer.write(whole[:-4])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
                raise AssertionError("answered before the request was over")
            writer.write(whole[-4:])
            first = await answer(reader)
            chunked = b"POST /full HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            writer.write(chunked + chunked)  # the second right behind
            return first, await answer(reader), await answer(reader)

    assert [status for status, *_ in asyncio.run(run())] == [429, 429, 429]


def test_answers_keep_the_order_of_their_requests() -> None:
    async def run():
        app = App()
        app.go.clear()
        async with served(app) as port, connection(port) as (reader, writer):
            writer.write(request("/free", b"first") + request("/full", b"second"))
            await until(lambda: app.seen == [b"first"])
            app.go.set()
            return await answer(reader), await answer(reader)

    (_, _, first), (status, _, second) = asyncio.run(run())
    assert json.loads(first) == {"got": "first"}
    # behind one that waits, a request goes to the app, which answers in turn
    assert (status, json.loads(second)) == (200, {"got": "second"})


def test_a_client_that_wants_the_connection_closed_gets_that() -> None:
    async def run():
        async with served(App()) as port, connection(port) as (reader, writer):
            writer.write(request("/full", b"text", "Connection: close"))
            found = await answer(reader)
            return found, await reader.read()

    (status, headers, _), rest = asyncio.run(run())
    assert (status, headers["connection"], rest) == (429, "close", b"")


def test_a_full_queue_refuses_requests_for_labels_alone(tiny_bundle, monkeypatch) -> None:
    """The service itself: what waits is answered, what comes on top is refused, the operator's pages are there."""

    async def run():
        app = create_app(settings_for(tiny_bundle, queue_capacity=2, max_inputs=2))
        async with served(app, "on") as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await until(lambda: app.state.registry.ready)
            batcher = app.state.registry.get().batcher
            monkeypatch.setattr(batcher, "_dispatch", lambda: None)
            waiting = asyncio.create_task(client.post("/v1/classify", json={"inputs": TEXTS[:2]}))
            await until(lambda: batcher.full)
            refused = await client.post("/v1/classify", json={"inputs": TEXTS[:1]})
            named = await client.post("/v1/models/tiny/classify?x=1", json={"inputs": TEXTS[:1]})
            unknown = await client.post("/v1/models/none/classify", json={"inputs": TEXTS[:1]})
            metrics = await client.get("/metrics")
            live = await client.get("/health/live")
            monkeypatch.undo()
            batcher._dispatch()
            return refused, named, unknown, metrics.text, live, await waiting

    refused, named, unknown, metrics, live, waiting = asyncio.run(run())
    assert refused.status_code == named.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert unknown.status_code == 404
    assert live.status_code == waiting.status_code == 200
    assert 'limbeck_rejected_total{reason="queue_full"} 2.0' in metrics
    assert 'limbeck_requests_total{model="tiny",route="/v1/classify",status="429"} 1.0' in metrics
    assert 'limbeck_requests_total{model="tiny",route="/v1/models/{model}/classify",status="429"} 1.0' in metrics
