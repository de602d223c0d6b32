"""HTTP/1.1 as uvicorn speaks it, with a way of its own for ordinary requests.

uvicorn's way parses each head anew, builds a scope, starts a task and sends an answer in two messages; on a small model
that is most of what a request costs. Here an ordinary request, alone on its connection and with the length of its body
declared, goes from the socket to `service.api.fast_path` and back. Clients repeat their heads byte for byte, so that
what one says is remembered. Everything else is uvicorn's: chunked bodies, requests behind one that is not answered yet,
HTTP/1.0, whatever the fast path has no answer to.
"""

import asyncio
import http
import logging
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.fast_path import Answer, FastPath, Work
from service.api.heads import Head

log = logging.getLogger(__name__)

_END_OF_HEAD = b"\r\n\r\n"
_STATUS_LINES = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus}


class Protocol(HttpToolsProtocol):
    """One connection. `config.app.state.fast_path` is the FastPath."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._path: FastPath = self.config.app.state.fast_path  # type: ignore[union-attr]
        self._parsing = False  # uvicorn's parser is in the middle of a request
        # of the ordinary request that is being read or answered:
        self._head: Head | None = None
        self._keep = True  # the connection
        self._leaving = False  # the service is
        self._arrived_s = 0.0
        self._refusal: Answer | None = None  # known from its head: the body is read past
        self._received = b""  # head and body
        self._missing = 0  # bytes of the body
        self._work: Work | None = None
        self._gone = False  # the client
        self._behind = b""  # what came after it
        self._idle_since_s = 0.0

    def data_received(self, data: bytes) -> None:
        """Take what came, as much of a request or of several as it may be."""
        if self._head is not None:
            self._go_on(data)
            return
        end = -1 if self._busy() else data.find(_END_OF_HEAD)
        found = None if end < 0 else self._path.read_head(data[: end + len(_END_OF_HEAD)])
        if found is None or len(data) - end - len(_END_OF_HEAD) > found.length:
            super().data_received(data)
            return
        self._arrived_s = time.monotonic()
        self._head, self._keep = found, found.keep_alive and not self._leaving
        self._refusal = self._path.refusal(self._head, self._arrived_s)
        self._received = data
        self._missing = self._head.length - (len(data) - end - len(_END_OF_HEAD))
        if not self._missing:
            self._begin()

    def on_message_begin(self) -> None:
        """Note that the parser is at work."""
        self._parsing = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Note that it is done with a request."""
        self._parsing = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the time that the connection may be idle."""
        self._idle_since_s = time.monotonic()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, if no request came since the timer was set."""
        self.timeout_keep_alive_task = None
        left_s = self._idle_since_s + self.timeout_keep_alive - time.monotonic()
        if self._head is not None:
            return  # its answer sets the timer again
        if left_s > 0:
            self._close_when_idle(left_s)
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the work that nobody waits for any more."""
        if self._work is not None:
            self._gone = True
            self._work.future.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection, after the answer to the request that is there."""
        self._leaving = True
        if self._head is None:
            super().shutdown()
        else:
            self._keep = False

    def _busy(self) -> bool:
        """Say whether uvicorn's way is not through with what came before."""
        return self._parsing or self.flow.write_paused or not (self.cycle is None or self.cycle.response_complete)

    def _go_on(self, data: bytes) -> None:
        """Take more of a body, or what comes behind the request."""
        if not self._missing:
            self._behind += data
            self.flow.pause_reading()
            return
        if self._refusal is None:
            self._received += data[: self._missing]
        self._missing, data = max(self._missing - len(data), 0), data[self._missing :]
        self._behind = data
        if not self._missing:
            self._begin()

    def _begin(self) -> None:
        """Answer the request, or have it answered."""
        assert self._head is not None  # noqa: S101
        begun: Answer | Work | None = self._refusal
        if begun is None:
            begun = self._path.begin(self._head, self._received[-self._head.length :], self._arrived_s)
        if isinstance(begun, Answer):
            self._answer(begun)
        elif begun is not None:
            self._work = begun
            # uvicorn waits for it at the end, and cancels it when the time is up
            self.tasks.add(begun.future)  # type: ignore[arg-type]
            begun.future.add_done_callback(self._finish)
        else:
            data, self._head, self._received, self._behind = self._received + self._behind, None, b"", b""
            super().data_received(data)
            if self._leaving:
                super().shutdown()

    def _finish(self, future: asyncio.Future[Any]) -> None:
        assert self._work is not None  # noqa: S101
        self.tasks.discard(future)
        work, self._work = self._work, None
        try:
            self._answer(self._path.finish(work, gone=self._gone))
        except Exception:  # a fault of ours; nobody may wait for an answer that does not come
            log.exception("an answer could not be written")
            self.transport.abort()

    def _answer(self, answer: Answer) -> None:
        """Send it, and take up what came behind its request."""
        if not self.transport.is_closing():
            self.transport.write(self._encode(answer))
            if not self._keep:
                self.transport.close()
        data, self._head, self._received, self._behind = self._behind, None, b"", b""
        self._rest()
        if data and not self.transport.is_closing():
            super().data_received(data)

    def _rest(self) -> None:
        """Do what `on_response_complete` does, but with one timer for many requests."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._idle_since_s = time.monotonic()
        if self.timeout_keep_alive_task is None:
            self._close_when_idle(self.timeout_keep_alive)

    def _close_when_idle(self, after_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(after_s, self.timeout_keep_alive_handler)

    def _encode(self, answer: Answer) -> bytes:
        lines = [_STATUS_LINES[answer.status]]
        for name, value in (*self.server_state.default_headers, *answer.headers):
            lines += (name, b": ", value, b"\r\n")
        if not self._keep:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", answer.body)
        return b"".join(lines)
