"""What a client may send and how long it may take, over real sockets: a flood or a slow client holds nobody up."""

import asyncio
import contextlib
import gc
import json
import socket
import time
import weakref
from collections.abc import AsyncIterator

import pytest
import uvicorn
import uvloop

from service.app import create_app
from service.protocol import Protocol
from tests.service.helpers import label_request, post, settings_for, until

JSON = ("Content-Type", "application/json")
GOOD = b'{"inputs": "a good movie"}'
GET = b"GET /health/live HTTP/1.1\r\nHost: t\r\n"
QUICK = {"head_timeout_s": 0.2, "body_timeout_s": 0.2, "send_timeout_s": 0.2}


class Client:
    """The client's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it was cut off: what it got before is what counts
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, body

    async def refusal(self) -> tuple[int, str]:
        """Return status and code of an answer after which the connection ends."""
        status, headers, body = await self.answer()
        assert headers["connection"] == "close"
        assert headers["content-type"] == "application/json"
        assert await self.reader.read() == b""
        return status, json.loads(body)["error"]["code"]

    async def rest(self) -> bytes:
        """Return what still comes before the service ends the connection."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


@contextlib.asynccontextmanager
async def served(bundle, **changes) -> AsyncIterator[tuple]:
    """The app on a real port, and what connects to it."""
    app = create_app(settings_for(bundle, **changes))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=Protocol, loop="uvloop", ws="none", log_config=None, access_log=False)
    )
    task = asyncio.create_task(server.serve([listener]))
    await until(lambda: server.started and app.state.registry.ready)
    clients = []

    async def connect(**options) -> Client:
        clients.append(Client(*await asyncio.open_connection(*listener.getsockname(), **options)))
        return clients[-1]

    try:
        async with asyncio.timeout(60):
            yield app, connect
    finally:
        for client in clients:
            client.writer.close()
        server.should_exit = True
        await task


async def metrics(connect) -> str:
    client = await connect()
    await client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    return (await client.rest()).decode()


def run(bundle, scenario, **changes):
    async def whole():
        async with served(bundle, **changes) as (app, connect):
            return await scenario(app, connect)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())


LONG = b"x" * 40_000
HEADS = {
    "one huge header": (b"X-Huge: " + b"x" * 1_000_000 + b"\r\n\r\n", 431),
    "a header without an end": (b"X-Huge: " + b"x" * 1_000_000, 431),
    "many bytes": (b"".join(b"X-%d: %s\r\n" % (number, b"y" * 900) for number in range(60)) + b"\r\n", 431),
    "many headers": (b"".join(b"X-%d: y\r\n" % number for number in range(200)) + b"\r\n", 431),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "start", [GET, label_request("a").partition(b"\r\n\r\n")[0] + b"\r\n"], ids=["GET", "classify"]
)
def test_a_head_beyond_a_bound_is_refused(tiny_bundle, head, start):
    sent, expected = HEADS[head]

    async def scenario(_, connect):
        client = await connect()
        await client.send(start + sent)
        return await client.refusal(), await metrics(connect)

    refusal, counted = run(tiny_bundle, scenario)
    assert refusal == (expected, "head_too_large")
    assert 'limbeck_rejected_total{reason="head_too_large"} 1.0' in counted
    assert 'route="unmatched",status="431"' in counted


def test_a_huge_head_in_small_pieces_is_refused_before_it_is_held(tiny_bundle):
    """As soon as the bound is passed, however much is still to come."""

    async def scenario(_, connect):
        client = await connect()
        await client.send(GET + b"X-Huge: ")
        for number in range(1000):
            await client.send(b"x" * 1000)
            await asyncio.sleep(0.001)
            if client.reader._buffer:
                return number, await client.refusal()
        return None

    pieces, refusal = run(tiny_bundle, scenario)
    assert refusal == (431, "head_too_large")
    assert pieces < 200


@pytest.mark.parametrize("way", ["trailers", "a chunk's extension"])
def test_bytes_of_a_chunked_request_that_are_no_body_count_too(tiny_bundle, way):
    async def scenario(_, connect):
        client = await connect()
        head = post("/v1/classify", b"", JSON, declared=False).removesuffix(b"0\r\n\r\n")
        await client.send(head + (b"0\r\nX-Huge: " if way == "trailers" else b"1;x="))
        for _ in range(40):
            await client.send(b"x" * 1000)
            await asyncio.sleep(0.005)
        return await client.refusal()

    assert run(tiny_bundle, scenario) == (431, "head_too_large")


def test_a_body_in_many_small_chunks_is_no_head(tiny_bundle):
    async def scenario(_, connect):
        client = await connect()
        body = json.dumps({"inputs": "word " * 4000}).encode()
        await client.send(post("/v1/classify", b"", JSON, declared=False).removesuffix(b"0\r\n\r\n"))
        for byte in body:
            client.writer.write(b"1\r\n%c\r\n" % byte)
        await client.send(b"0\r\n\r\n")
        return await client.answer()

    assert run(tiny_bundle, scenario)[0] == 200


@pytest.mark.parametrize(
    "path", ["/" + "a" * 9000, "/v1/classify?" + "a" * 9000, "/v1/models/%s/classify" % ("a" * 9000)]
)
def test_a_long_target_is_refused(tiny_bundle, path):
    async def scenario(_, connect):
        client = await connect()
        await client.send(post(path, GOOD, JSON))
        return await client.refusal()

    assert run(tiny_bundle, scenario) == (414, "target_too_long")


def test_a_head_just_within_the_bounds_is_read(tiny_bundle):
    async def scenario(_, connect):
        client = await connect()
        answers = []
        for path in ("/v1/classify?" + "a" * 8000, "/v1/classify"):
            await client.send(post(path, GOOD, JSON, *((f"X-{number}", "y" * 200) for number in range(90))))
            answers.append((await client.answer())[0])
        return answers

    assert run(tiny_bundle, scenario) == [200, 200]


def test_what_is_no_http_gets_the_services_own_form_of_errors(tiny_bundle):
    async def scenario(_, connect):
        client = await connect()
        await client.send(b"HELLO\r\n\r\n")
        return await client.refusal()

    assert run(tiny_bundle, scenario) == (400, "bad_request")


@pytest.mark.parametrize("start", [GET, label_request("a")[:40]], ids=["GET", "classify"])
def test_a_slow_head_is_answered_408_however_steadily_it_comes(tiny_bundle, start):
    async def scenario(_, connect):
        client = await connect()
        await client.send(start)
        drip = asyncio.create_task(dripping(client, b"X-Slow: y\r\n"))
        try:
            return await client.refusal(), await metrics(connect)
        finally:
            drip.cancel()

    refusal, counted = run(tiny_bundle, scenario, **QUICK)
    assert refusal == (408, "request_timeout")
    assert 'limbeck_rejected_total{reason="request_timeout"} 1.0' in counted


async def dripping(client: Client, data: bytes) -> None:
    while True:
        await client.send(data)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("drip", [b"", b"\r\n"], ids=["silent", "empty lines"])
def test_a_connection_on_which_nothing_is_asked_is_closed(tiny_bundle, drip):
    async def scenario(_, connect):
        client = await connect()
        task = asyncio.create_task(dripping(client, drip))
        try:
            return await client.rest()
        finally:
            task.cancel()

    assert run(tiny_bundle, scenario, **QUICK) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        post("/v1/classify", b" " * 1000, JSON),  # the fast path's
        post("/v1/classify", b" " * 1000, ("Content-Type", "Application/JSON")),
        post("/v1/classify", b" " * 1000, JSON, declared=False)[:-400],
        post("/predict", b" " * 1000, JSON),  # another dialect
    ],
    ids=["fast path", "framework", "chunked", "TEI"],
)
def test_a_slow_body_is_answered_408(tiny_bundle, request_bytes):
    async def scenario(_, connect):
        client = await connect()
        await client.send(request_bytes[:-500])
        drip = asyncio.create_task(dripping(client, b" "))
        try:
            status, headers, _ = await client.answer()
            return status, headers["connection"], await client.rest(), await metrics(connect)
        finally:
            drip.cancel()

    status, connection, rest, counted = run(tiny_bundle, scenario, **QUICK)
    assert (status, connection, rest) == (408, "close", b"")
    assert 'limbeck_rejected_total{reason="request_timeout"} 1.0' in counted
    assert 'status="408"' in counted


def test_an_answer_that_takes_longer_than_a_body_may_is_waited_for(tiny_bundle, monkeypatch):
    """The bounds are on the client alone; requests behind one that is not answered yet do not count either."""

    async def scenario(app, connect):
        batcher = app.state.registry.get().batcher
        dispatch = batcher._dispatch
        monkeypatch.setattr(batcher, "_dispatch", lambda: None)
        fast, routed = await connect(), await connect()
        await fast.send(label_request("a") + label_request("b")[:30])
        await routed.send(post("/v1/classify", GOOD, JSON, declared=False) + label_request("b")[:30])
        await asyncio.sleep(2.5)
        monkeypatch.setattr(batcher, "_dispatch", dispatch)
        dispatch()
        return [(await client.answer())[0] for client in (fast, routed)]

    assert run(tiny_bundle, scenario, **QUICK) == [200, 200]


def test_a_body_that_nobody_needed_must_come_in_time_too(tiny_bundle):
    async def scenario(_, connect):
        client = await connect()
        await client.send(post("/v1/none", b" " * 1000, JSON)[:-500])
        status, _, _ = await client.answer()
        drip = asyncio.create_task(dripping(client, b" "))
        try:
            return status, await client.rest()
        finally:
            drip.cancel()

    assert run(tiny_bundle, scenario, **QUICK) == (404, b"")


STALLED = {
    "fast path": post("/v1/classify", json.dumps({"inputs": ["a"] * 128}).encode(), JSON),
    "framework": b"GET /openapi.json HTTP/1.1\r\nHost: t\r\n\r\n",
}


@pytest.mark.parametrize("way", STALLED)
def test_who_does_not_read_an_answer_is_cut_off(tiny_bundle, way):
    """Nothing of it stays in memory."""

    async def scenario(app, connect):
        port = (await connect()).writer.get_extra_info("peername")
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stalled, port)
            watched, rest = app.state.connections, b""
            held: list[weakref.ref] = []
            while not held:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        rest = rest or STALLED[way]
                        rest = rest[stalled.send(rest) :]
                await asyncio.sleep(0.01)
                held = [weakref.ref(c) for c in watched._open if c.transport.get_write_buffer_size()]
            await until(lambda: held[0]() not in watched._open, 30)
            await asyncio.sleep(0.05)
            gc.collect()
            return held[0]()

    assert run(tiny_bundle, scenario, **QUICK) is None


def test_an_idle_connection_is_closed_after_the_time_that_is_set(tiny_bundle):
    async def scenario(_, connect):
        clients = [await connect(), await connect()]
        await clients[0].send(label_request("a"))
        await clients[1].send(GET + b"\r\n")
        for client in clients:
            await client.answer()
        began_s = time.monotonic()
        assert [await client.rest() for client in clients] == [b"", b""]
        return time.monotonic() - began_s

    assert run(tiny_bundle, scenario, keep_alive_timeout_s=1) > 0.8


def test_connections_beyond_the_bound_are_told_to_come_again(tiny_bundle):
    async def scenario(_, connect):
        first = [await connect() for _ in range(2)]
        for client in first:
            await client.send(label_request("a"))
            await client.answer()
        third = await connect()
        await third.send(label_request("a"))
        status, headers, body = await third.answer()
        assert await third.rest() == b""
        first[0].writer.close()
        await first[0].writer.wait_closed()
        answers = []
        while 200 not in answers:  # the service has to notice that one has gone
            another = await connect()
            await another.send(label_request("a"))
            answers.append((await another.answer())[0])
        await first[1].send(label_request("a"))
        return status, headers, json.loads(body), (await first[1].answer())[0]

    status, headers, body, kept = run(tiny_bundle, scenario, max_connections=2)
    assert (status, body["error"]["code"], kept) == (503, "too_many_connections", 200)
    assert int(headers["retry-after"]) > 0
    assert headers["connection"] == "close"
