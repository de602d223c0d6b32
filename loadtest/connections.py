"""HTTP/1.1 connections that send bytes made before and see when the answer is whole."""

import asyncio
import errno
import ssl
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from loadtest.messages import CLOSED, GOOD, INVALID, REFUSED, TIMEOUT, Settings

_MOST_OPENING = 64
"""Connections that are opened at the same time: a listener that overflows costs its clients seconds of repeats."""

Done = Callable[[float, str], None]
"""Called with a request's scheduled time and what became of it."""


class Connection(asyncio.Protocol):
    """One connection: at most one request at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.WriteTransport
        self.scheduled_s = 0.0
        self.asking = False
        self.answered_before = False
        self.received = False
        """Whether any of the present answer is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def ask(self, scheduled_s: float, request: bytes) -> None:
        """Send a request."""
        self.scheduled_s = scheduled_s
        self.asking = True
        self.received = False
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read on in the answer."""
        self.received = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._pool.broke(self, INVALID)

    def on_message_complete(self) -> None:
        """Tell the pool; called by the parser."""
        if self.asking:
            self.asking = False
            self.answered_before = True
            status = self._parser.get_status_code()
            kind = GOOD if 200 <= status < 300 else f"status {status}"
            self._pool.answered(self, kind, self._parser.should_keep_alive())

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell the pool."""
        self._pool.broke(self, CLOSED)

    def close(self) -> None:
        """Give the connection up, without waiting."""
        self._transport.abort()


class Pool:
    """Connections to one server. A request takes an idle one, or waits until one is opened or free."""

    def __init__(self, settings: Settings, done: Done) -> None:
        self._settings = settings
        self._done = done
        self._tls = ssl.create_default_context() if settings.server_name else None
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._waiting: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._next_request = 0

    @property
    def in_flight(self) -> int:
        """Requests without an outcome."""
        return len(self._busy) + len(self._waiting)

    def start_at(self, request: int) -> None:
        """Begin the turn of the requests at this one."""
        self._next_request = request % len(self._settings.requests)

    def ask(self, scheduled_s: float) -> None:
        """Send the next request now, or as soon as there is a connection for it."""
        if self._idle:
            self._send(self._idle.pop(), scheduled_s)
        else:
            self._waiting.append(scheduled_s)
            self._open()

    def answered(self, connection: Connection, kind: str, keep: bool) -> None:
        """Report an answer and give the connection its next request."""
        self._busy.discard(connection)
        self._done(connection.scheduled_s, kind)
        if not (keep and self._settings.reuse):
            connection.close()
            self._open()
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def broke(self, connection: Connection, kind: str) -> None:
        """Take note that a connection is of no more use."""
        if connection in self._busy:
            self._busy.discard(connection)
            connection.asking = False
            connection.close()
            if kind == CLOSED and connection.answered_before and not connection.received:
                # the server had closed the idle connection: every client asks again then (RFC 9112, 9.3.1)
                self._waiting.appendleft(connection.scheduled_s)
            else:
                self._done(connection.scheduled_s, kind)
            self._open()
        elif connection in self._idle:
            self._idle.remove(connection)

    def expire(self, now_s: float) -> None:
        """Give up what was scheduled longer ago than a request may take."""
        limit_s = now_s - self._settings.timeout_s
        for connection in [one for one in self._busy if one.scheduled_s <= limit_s]:
            self.broke(connection, TIMEOUT)
        while self._waiting and self._waiting[0] <= limit_s:
            self._done(self._waiting.popleft(), TIMEOUT)

    def close(self) -> None:
        """Close all connections."""
        for task in self._opening:
            task.cancel()
        for connection in [*self._idle, *self._busy]:
            connection.close()

    def _send(self, connection: Connection, scheduled_s: float) -> None:
        self._busy.add(connection)
        requests = self._settings.requests
        connection.ask(scheduled_s, requests[self._next_request])
        self._next_request = (self._next_request + 1) % len(requests)

    def _open(self) -> None:
        """Open a connection if more requests wait than are being opened, and there may be more."""
        opening = len(self._opening)
        count = opening + len(self._busy) + len(self._idle)
        if opening < min(len(self._waiting), _MOST_OPENING) and count < self._settings.max_connections:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._opening.add(task)

    async def _connect(self) -> None:
        host, port = self._settings.address
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self), host, port, ssl=self._tls, server_hostname=self._settings.server_name
                )
        except OSError as error:  # TimeoutError and TLS's are among them
            self._forget_opening()
            if self._waiting:
                self._done(self._waiting.popleft(), _reason(error))
            self._open()
            return
        self._forget_opening()
        if self._waiting:
            self._send(connection, self._waiting.popleft())
            self._open()
        else:
            self._idle.append(connection)

    def _forget_opening(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._opening.discard(task)


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return TIMEOUT
    if error.errno in (errno.EMFILE, errno.EADDRNOTAVAIL):
        return f"{REFUSED} (this machine has no more sockets)"
    return f"{REFUSED} ({'refused' if isinstance(error, ConnectionRefusedError) else error.strerror or error})"
