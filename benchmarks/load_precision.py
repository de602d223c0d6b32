"""How exactly one process of `limbeck loadtest` keeps its times, by rate and by event loop.

    .venv/bin/python -m benchmarks.load_precision

A server that answers at once, in a process of its own, gets requests at Poisson times. Printed is how late they left,
which is also the error of a latency, and the CPU time of a request. The loops take turns. Needs two idle CPUs.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import cast

import httptools
import uvloop

from compress.machine import describe_machine, load_average
from loadtest.arrivals import Arrivals
from loadtest.generator import Generator
from loadtest.messages import Plan, Settings
from loadtest.outcome import Collector, Outcome
from loadtest.worker import precise_loop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = b"POST /v1/classify HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%b"
BODY = b'{"inputs":["' + b"A moving, beautifully acted film. " * 4 + b'"]}'
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio, select": precise_loop,
    "asyncio, epoll": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


class Answering(asyncio.Protocol):
    """A connection of a server that answers at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answer."""
        cast(asyncio.WriteTransport, self.transport).write(ANSWER)


def serve(pipe: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


def measure(port: int, loop: Callable[[], asyncio.AbstractEventLoop], rate: float, seconds: int) -> Outcome:
    collector = Collector(seconds)
    request = REQUEST % (len(BODY), BODY)
    settings = Settings(("127.0.0.1", port), None, (request,), 10.0, 1024, reuse=True)

    async def generate() -> None:
        generator = Generator(settings, lambda tick: collector.add(0, tick))
        await generator.run(Plan(time.monotonic() + 1.1, 1.0, seconds, rate, 0, Arrivals.POISSON, 1, 0, 1))
        generator.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(generate())
    return collector.outcome(rate, None, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 1000, 3000, 6000])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"Machine: {describe_machine()}; load average {load_average():.2f} before the start.\n")
    print("| asked /s | loop | achieved /s | late p50 ms | late p99 ms | p50 ms | p99 ms | CPU µs a request |")
    print("|---|---|---|---|---|---|---|---|")
    mine, its = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(its,), daemon=True)
    server.start()
    port = mine.recv()
    for rate in arguments.rates:
        found: dict[str, list[Outcome]] = {name: [] for name in LOOPS}
        for _ in range(arguments.rounds):
            for name, loop in LOOPS.items():
                found[name].append(measure(port, loop, rate, arguments.seconds))
        for name, outcomes in found.items():
            figures = [
                statistics.median(of(one) or 0.0 for one in outcomes)
                for of in (
                    lambda one: one.rate.value,
                    lambda one: one.lag_p50_ms,
                    lambda one: one.lag_p99_ms,
                    lambda one: one.latency_ms["p50"].value,
                    lambda one: one.latency_ms["p99"].value,
                    lambda one: 1e6 * one.cpu_share / one.rate.value,
                )
            ]
            print(
                f"| {rate:,.0f} | {name} | {figures[0]:,.0f} | "
                + " | ".join(f"{one:.3g}" for one in figures[1:])
                + " |"
            )
    server.terminate()


if __name__ == "__main__":
    main()
