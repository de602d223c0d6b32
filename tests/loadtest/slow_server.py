"""A server in a process of its own whose delays are known: what a load test of it must report."""

import asyncio
import contextlib
import itertools
import multiprocessing
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import httptools

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CUT = b"HTTP/1.1 200 OK\r\nContent-Le"
LAST = GOOD.replace(b"Content-Type", b"Connection: close\r\nContent-Type")


@dataclass(frozen=True)
class Behavior:
    delays_s: Sequence[float] = (0.0,)
    """Of the requests in turn."""
    answers: Sequence[bytes | None] = (GOOD,)
    """In turn; None closes the connection instead, CUT before the answer is whole."""
    stall_after_s: float | None = None
    """So long after the first request the process stops for `stall_s`."""
    stall_s: float = 2.0
    idle_s: float | None = None
    """Connections without a request are closed after that time."""
    certificate: Path | None = None
    """With its key, for TLS."""


class _Handler(asyncio.Protocol):
    first = True
    connections = 0

    def __init__(self, behavior: Behavior, delays: Iterator[float], answers: Iterator[bytes | None]) -> None:
        self.behavior, self.delays, self.answers = behavior, delays, answers
        self.parser = httptools.HttpRequestParser(self)
        self.loop = asyncio.get_running_loop()
        self.idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        _Handler.connections += 1

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        if self.idle is not None:
            self.idle.cancel()
        if self.url == b"/connections":
            body = b"%d" % _Handler.connections
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        if self.url == b"/metrics":
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        if _Handler.first:
            _Handler.first = False
            if self.behavior.stall_after_s is not None:
                self.loop.call_later(self.behavior.stall_after_s, time.sleep, self.behavior.stall_s)
        delay_s = next(self.delays)
        if delay_s:
            self.loop.call_later(delay_s, self.answer)
        else:
            self.answer()

    def answer(self) -> None:
        found = next(self.answers)
        if found is None:
            self.transport.abort()
            return
        self.transport.write(found)
        if found == CUT:
            self.transport.close()
        if self.behavior.idle_s is not None:
            self.idle = self.loop.call_later(self.behavior.idle_s, self.transport.close)


def _main(pipe: Connection, behavior: Behavior) -> None:
    async def serve() -> None:
        delays, answers = itertools.cycle(behavior.delays_s), itertools.cycle(behavior.answers)
        loop = asyncio.get_running_loop()
        tls = None
        if behavior.certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(behavior.certificate)
        server = await loop.create_server(
            lambda: _Handler(behavior, delays, answers), "127.0.0.1", 0, backlog=2048, ssl=tls
        )
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextlib.contextmanager
def slow_server(behavior: Behavior) -> Iterator[int]:
    """Give the port of a server that behaves like that."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_main, args=(its, behavior), daemon=True)
    process.start()
    try:
        assert mine.poll(60)
        yield mine.recv()
    finally:
        process.terminate()
        process.join(10)
        mine.close()
        its.close()
