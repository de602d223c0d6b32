"""HTTP/1.1 as uvicorn speaks it, with bounds on what a client may send and on the time that it may take.

uvicorn sets none to a head, which httptools keeps in memory until it is complete, and waits for ever for heads, bodies
and clients that do not read their answers. Bodies that go to the framework are `service.limits`' to bound.
"""

import asyncio
import http
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.fast_path import Answer, FastPath
from service.api.heads import LONGEST_TARGET_BYTES, Head
from service.connections import Connections
from service.errors import (
    BadRequestError,
    HeadTooLargeError,
    RequestTimeoutError,
    ServiceError,
    TargetTooLongError,
    TooManyConnectionsError,
)
from service.limits import late
from service.ports import came_through
from service.security_headers import security_headers

_LINGER_S = 2.0
_LINE_BYTES = 4  # of a header, beside name and value


def _beginning(status: http.HTTPStatus) -> bytes:
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode())]
    return b"".join(lines + [b"%b: %b\r\n" % header for header in security_headers(status)])


_BEGINNINGS = {int(status): _beginning(status) for status in http.HTTPStatus}


class Connection(HttpToolsProtocol):
    """One connection. `config.app.state` has the FastPath and the Connections."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._path: FastPath = self.config.app.state.fast_path  # type: ignore[union-attr]
        self._connections: Connections = self.config.app.state.connections  # type: ignore[union-attr]
        self._settings = self._connections.settings
        self.timeout_keep_alive = self._settings.keep_alive_timeout_s
        self._parsing = False  # uvicorn's parser is in the middle of a request
        self._in_head = False
        self._since_s = 0.0  # when the head or body that it is in began
        self._named_bytes = 0  # headers so far, whole ones
        self._quiet_bytes = 0  # read whole without a part of a body in them
        self._problem: ServiceError | None = None
        self._idle_since_s = 0.0
        self._patience_s: float = self._settings.head_timeout_s  # with an idle connection
        self._working: Any = None  # uvicorn's cycle that is being answered; `cycle` is the one read last
        self._unsent_since_s: float | None = None
        self._left_s: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the connection, or refuse it."""
        super().connection_made(transport)
        self._idle_since_s = time.monotonic()
        # operators and probes get in when clients have taken all there are
        bounded = not came_through(self.server, self._settings.operations_port)
        if not self._connections.add(self, self.loop, bounded=bounded):
            error = TooManyConnectionsError("more connections are open than the service keeps")
            self._turn_away(error, self._idle_since_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch it no more."""
        self._connections.discard(self)
        self._give_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Let uvicorn's parser have what came."""
        self._quiet_bytes += len(data)
        super().data_received(data)
        if self._parsing and self._quiet_bytes > self._settings.max_header_bytes:
            self._turn_away(self._too_large(), self._since_s)

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        self._parsing = self._in_head = True
        self._since_s = time.monotonic()
        self._named_bytes = self._quiet_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Bound path and query."""
        super().on_url(url)
        if len(self.url) > LONGEST_TARGET_BYTES:
            self._problem = TargetTooLongError(f"expected a path of at most {LONGEST_TARGET_BYTES} bytes, found more")
            raise self._problem

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bound headers; those behind a body in chunks count too."""
        super().on_header(name, value)
        self._named_bytes += len(name) + len(value) + _LINE_BYTES
        if self._named_bytes + len(self.url) > self._settings.max_header_bytes:
            self._problem = self._too_large()
            raise self._problem
        if len(self.headers) > self._settings.max_headers:
            self._problem = HeadTooLargeError(f"expected at most {self._settings.max_headers} headers, found more")
            raise self._problem

    def on_headers_complete(self) -> None:
        """Note that a body may follow."""
        self._in_head = False
        self._since_s = time.monotonic()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that there is a part of a body in what came."""
        self._quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the parser is done with a request."""
        self._parsing = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the time that the connection may be idle."""
        self._rest_from(time.monotonic())
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what the parser gave up on."""
        self._turn_away(self._problem or BadRequestError("expected a request in HTTP/1.1"), self._since_s)

    def look(self, now_s: float) -> None:
        """End what takes too long; done about every second."""
        unsent = self.transport.get_write_buffer_size() > 0
        if unsent and self._unsent_since_s is None:
            self._unsent_since_s = now_s
        elif not unsent:
            self._unsent_since_s = None
        overdue = self._unsent_since_s is not None and now_s - self._unsent_since_s > self._settings.send_timeout_s
        if overdue or (self._left_s is not None and now_s - self._left_s > _LINGER_S):
            self._give_up()
            self.transport.abort()
        elif self._left_s is None and not self.transport.is_closing():
            self._look_at_request(now_s)

    def _look_at_request(self, now_s: float) -> None:
        """End the connection when what the client owes is overdue."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._since_s = now_s  # an answer is owed first; for its body the framework waits as long as it may
        elif not self._parsing:
            if now_s - self._idle_since_s > self._patience_s:
                self.transport.close()
        elif self._in_head:
            if now_s - self._since_s > self._settings.head_timeout_s:
                self._turn_away(RequestTimeoutError(late("head", self._settings.head_timeout_s)), self._since_s)
        elif now_s - self._since_s > self._settings.body_timeout_s:
            self.transport.close()  # of a request that was answered without it

    def _rest_from(self, now_s: float) -> None:
        self._idle_since_s = now_s
        self._patience_s = self.timeout_keep_alive

    def _too_large(self) -> ServiceError:
        return HeadTooLargeError(f"expected a head of at most {self._settings.max_header_bytes} bytes, found more")

    def _turn_away(self, error: ServiceError, arrived_s: float, head: Head | None = None) -> None:
        """Answer a request that is not read to its end, and end the connection."""
        if self.transport.is_closing():
            return
        if self._owes_another():
            self.transport.close()  # an answer now would be taken for that to the request before
            return
        self.transport.write(self._encode(self._path.turn_away(error, arrived_s, head)))
        self._give_up()
        self._leave()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._working = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self) -> None:
        """Let the request that the framework works on, and the one behind it, write nothing more."""
        for cycle in (self._working, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _owes_another(self) -> bool:
        """Say whether something else must be written before an answer to the request that is being read."""
        if self._parsing and not self._in_head:
            return bool(self.pipeline) or self.cycle.response_started
        return self.cycle is not None and not self.cycle.response_complete

    def _leave(self) -> None:
        """Say that nothing more follows, and read past what the client still sends.

        A socket that is closed with bytes unread may take back the answer that was written last.
        """
        self._left_s = time.monotonic()
        if not self._connections.leave(self):
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self.transport.set_protocol(_ReadPast(self))
        self.flow.resume_reading()
        self.transport.write_eof()

    def _encode(self, answer: Answer, *, close: bool = False) -> bytes:
        lines = [_BEGINNINGS[answer.status]]
        for name, value in (*self.server_state.default_headers, *answer.headers):
            lines += (name, b": ", value, b"\r\n")
        if close:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", answer.body)
        return b"".join(lines)


class _ReadPast(asyncio.Protocol):
    """Takes a connection's place once it has its last answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
