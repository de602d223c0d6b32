"""An event loop whose clock jumps from timer to timer, with a server at the other end of every connection.

Nothing here takes time, so a machine that is busy changes no figure: what a load test reports of such a server is what
its formulas say.
"""

import asyncio
import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httptools

from loadtest.arrivals import Arrivals
from loadtest.generator import Generator
from loadtest.messages import Plan, Settings, Tick
from loadtest.outcome import Collector, Outcome

REQUEST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{}"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


class _Selector(selectors.DefaultSelector):
    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout is not None and timeout > 0:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, server: Callable[[], asyncio.Protocol]) -> None:
        super().__init__(_Selector())
        self._server = server

    def time(self) -> float:
        return self._selector.now_s

    def jump(self, seconds: float) -> None:
        """As if the process had been stopped so long."""
        self._selector.now_s += seconds

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        # a pair of Unix sockets: what one end has written, the other can read at once
        mine, its = socket.socketpair()
        await super().create_connection(self._server, sock=its)
        return await super().create_connection(factory, sock=mine)


class Server(asyncio.Protocol):
    """Answers each request after a delay; while it stalls nothing moves."""

    def __init__(
        self, delays_s: Iterator[float], answers: Iterator[bytes], stall_s: tuple[float, float] | None = None
    ) -> None:
        self._delays_s, self._answers, self._stall_s = delays_s, answers, stall_s

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        read_s = self._loop.time()
        if self._stall_s is not None and self._stall_s[0] <= read_s < self._stall_s[1]:
            read_s = self._stall_s[1]
        answer = next(self._answers)
        self._loop.call_at(read_s + next(self._delays_s), lambda: self._transport.write(answer))


def measured(
    server: Callable[[], asyncio.Protocol],
    seconds: int,
    *,
    rate: float = 0,
    clients: int = 0,
    arrivals: Arrivals = Arrivals.POISSON,
    warm_up_s: float = 0.0,
    stops_s: float = 0.0,
    **changes: Any,
) -> Outcome:
    """Run one process's part from second 1,010 on; each second the generator is stopped for `stops_s`."""
    given = {
        "address": ("here", 80),
        "server_name": None,
        "requests": (REQUEST,),
        "timeout_s": 10.0,
        "max_connections": 400,
        "reuse": True,
    }
    collector = Collector(seconds)

    def tell(tick: Tick) -> None:
        collector.add(0, tick)
        loop.jump(stops_s)

    async def run() -> None:
        generator = Generator(Settings(**(given | changes)), tell, loop.time)
        await generator.run(Plan(1010.0, warm_up_s, seconds, rate, clients, arrivals, 0, 0, 1))
        generator.close()
        await asyncio.sleep(0.01)

    loop = VirtualLoop(server)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    return collector.outcome(rate or None, clients or None, 1)
