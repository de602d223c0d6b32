"""Open loop: requests leave at random times that were drawn before, whether or not answers came.

A latency counts from the time its request was scheduled for, not from when it was sent: a server that stalls is charged
for all that should have been sent meanwhile (no coordinated omission). wrk cannot do that. One process and one thread;
it costs 35 to 60 µs of CPU a request, waking from sleep included.
"""

import gc
import itertools
import math
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.serving.closed_loop import Measured


@dataclass(slots=True)
class _Connection:
    link: socket.socket
    scheduled: float
    received: bytearray = field(default_factory=bytearray)


class OpenLoop:
    """One run against one server: `requests` are whole HTTP requests, sent in turn.

    After the run the last requests may take `grace_s`; one without an answer then is an error, and its latency so far
    counts.
    """

    def __init__(
        self, host: str, port: int, requests: Sequence[bytes], max_connections: int = 512, grace_s: float = 1.0
    ) -> None:
        self._address = (host, port)
        self._requests = requests
        self._max_connections = max_connections
        self._grace_s = grace_s
        self._poll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: list[socket.socket] = []
        self._late: deque[float] = deque()
        self._sent = 0
        self.by_status: dict[int, list[float]] = {}
        """Seconds from the scheduled times to the answers of each status; those without one have status 0."""
        self.answers = 0
        self.errors = 0
        self.send_delays_s: list[float] = []
        """How long after its time each request left: what of the latency is the generator's, or lack of connections."""

    @property
    def latencies_s(self) -> list[float]:
        """Seconds from the scheduled times to the answers, of all requests, sorted."""
        return sorted(itertools.chain.from_iterable(self.by_status.values()))

    def connect(self, count: int) -> None:
        """Open connections before `run`, a few at a time: a listener that overflows costs seconds of repeats."""
        for opened in range(count):
            self._idle.append(self._connect())
            if opened % 16 == 15:
                time.sleep(0.002)

    def run(self, rate: float, seconds: float, seed: int = 0) -> Measured:
        """Send `rate` requests a second in the mean, at Poisson times, for so many seconds."""
        arrivals = list(poisson(rate, seconds, seed))
        gc.disable()
        try:
            started = time.perf_counter()
            position = 0
            while position < len(arrivals):
                now = time.perf_counter() - started
                while position < len(arrivals) and arrivals[position] <= now:
                    self._late.append(started + arrivals[position])
                    position += 1
                self._send()
                pause = arrivals[position] - (time.perf_counter() - started) if position < len(arrivals) else 0
                self._receive(max(0.0, pause))
            in_time = self.answers
            elapsed = time.perf_counter() - started
            limit = time.perf_counter() + self._grace_s
            while (self._busy or self._late) and time.perf_counter() < limit:
                self._send()
                self._receive(max(0.0, limit - time.perf_counter()))
        finally:
            gc.enable()
        self._give_up(time.perf_counter())
        ordered = self.latencies_s
        return Measured(
            in_time / elapsed, 1000 * quantile(ordered, 0.5), 1000 * quantile(ordered, 0.99), self.answers, self.errors
        )

    def _send(self) -> None:
        while self._late and (self._idle or len(self._busy) < self._max_connections):
            scheduled = self._late.popleft()
            link = self._idle.pop() if self._idle else self._connect()
            self._busy[link.fileno()] = _Connection(link, scheduled)
            self.send_delays_s.append(time.perf_counter() - scheduled)
            link.sendall(self._requests[self._sent % len(self._requests)])
            self._sent += 1

    def _connect(self) -> socket.socket:
        link = socket.create_connection(self._address, timeout=10)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll.register(link.fileno(), select.EPOLLIN)
        return link

    def _receive(self, pause_s: float) -> None:
        # epoll waits whole milliseconds, select microseconds
        select.select([self._poll.fileno()], [], [], pause_s)
        for number, _ in self._poll.poll(0):
            connection = self._busy.get(number)
            if connection is None:  # the server closed an idle connection
                closed = next(link for link in self._idle if link.fileno() == number)
                self._idle.remove(closed)
                self._drop(closed)
                continue
            try:
                chunk = connection.link.recv(65536)
            except ConnectionError:
                chunk = b""
            connection.received += chunk
            if not chunk:
                self._fail(connection, time.perf_counter())
            elif (status := complete(connection.received)) is not None:
                del self._busy[number]
                self._idle.append(connection.link)
                self._count(status, time.perf_counter() - connection.scheduled)
                if 200 <= status < 300:
                    self.answers += 1
                else:
                    self.errors += 1

    def _fail(self, connection: _Connection, now: float) -> None:
        del self._busy[connection.link.fileno()]
        self._drop(connection.link)
        self.errors += 1
        self._count(0, now - connection.scheduled)

    def _count(self, status: int, latency_s: float) -> None:
        self.by_status.setdefault(status, []).append(latency_s)

    def _drop(self, link: socket.socket) -> None:
        self._poll.unregister(link.fileno())
        link.close()

    def _give_up(self, now: float) -> None:
        for connection in list(self._busy.values()):
            self._fail(connection, now)
        self.errors += len(self._late)
        for scheduled in self._late:
            self._count(0, now - scheduled)
        for link in self._idle:
            self._drop(link)
        self._poll.close()


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield the times, in seconds from the start, of a Poisson process."""
    draw = random.Random(seed)
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the sorted values does not exceed; nan when empty."""
    if not ordered:
        return float("nan")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def complete(received: bytes | bytearray) -> int | None:
    """Return the status of an HTTP/1.1 answer once all of it is there, None before; lengths or chunks."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = bytes(received[:head_end]).lower()
    if b"transfer-encoding: chunked" in head:
        whole = received.endswith(b"\r\n0\r\n\r\n")
    else:
        _, _, length = head.partition(b"content-length:")
        whole = len(received) - head_end - 4 >= int(length.split(b"\r\n", 1)[0])
    return int(head[9:12]) if whole else None


def http_request(path: str, host: str, body: bytes) -> bytes:
    """Return a whole POST of JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
