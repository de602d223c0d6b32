"""HTTP/1.1 with a way of its own for ordinary requests.

uvicorn's way, which `service.connection` bounds, parses each head anew, builds a scope, starts a task and sends an
answer in two messages; on a small model that is most of what a request costs. Here an ordinary request, alone on its
connection and with the length of its body declared, goes from the socket to `service.api.fast_path` and back. Clients
repeat their heads byte for byte, so that what one says is remembered. Everything else is uvicorn's: chunked bodies,
requests behind one that is not answered yet, HTTP/1.0, whatever the fast path has no answer to.
"""

import asyncio
import logging
import time
from typing import Any

from service.api.fast_path import Answer, Work
from service.api.heads import Head
from service.connection import Connection
from service.errors import RequestTimeoutError
from service.limits import late
from service.model import Model
from service.ports import came_through

log = logging.getLogger(__name__)

_END_OF_HEAD = b"\r\n\r\n"


class Protocol(Connection):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._read_head = self._path.read_head
        # of the ordinary request that is being read or answered:
        self._head: Head | None = None
        self._model: Model | None = None  # that it means
        self._keep = True  # the connection
        self._leaving = False  # the service is
        self._arrived_s = 0.0
        self._refusal: Answer | None = None  # known from its head: the body is read past
        self._received = b""  # head and body
        self._missing = 0  # bytes of the body
        self._work: Work | None = None
        self._gone = False  # the client
        self._behind = b""  # what came after it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Learn which port it came through: on the operators' nothing is ordinary."""
        super().connection_made(transport)
        if came_through(self.server, self._settings.operations_port):
            self._read_head = _nothing_ordinary

    def data_received(self, data: bytes) -> None:
        """Take what came, as much of a request or of several as it may be."""
        if self._head is not None:
            self._go_on(data)
            return
        end = -1 if self._busy() else data.find(_END_OF_HEAD)
        found = None if end < 0 else self._read_head(data[: end + len(_END_OF_HEAD)])
        if found is None or len(data) - end - len(_END_OF_HEAD) > found.length:
            super().data_received(data)
            return
        self._arrived_s = time.monotonic()
        self._head, self._keep = found, found.keep_alive and not self._leaving
        self._model = self._path.choose(self._head)
        self._refusal = self._path.refusal(self._head, self._model, self._arrived_s)
        self._received = data
        self._missing = self._head.length - (len(data) - end - len(_END_OF_HEAD))
        if not self._missing:
            self._begin()

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
        elif self._head is not None and self._refusal is None:  # in the middle of its body
            self._path.left(self._head, self._arrived_s)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection, after the answer to the request that is there."""
        self._leaving = True
        if self._head is None:
            super().shutdown()
        else:
            self._keep = False

    def _look_at_request(self, now_s: float) -> None:
        """End the connection when the body of an ordinary request is overdue, or what else the client owes."""
        if self._head is None:
            super()._look_at_request(now_s)
        elif self._missing and now_s - self._arrived_s > self._settings.body_timeout_s:
            head, self._head, self._model, self._received = self._head, None, None, b""
            if self._refusal is not None:  # it was told of already
                self.transport.close()
            else:
                error = RequestTimeoutError(late("body", self._settings.body_timeout_s))
                self._turn_away(error, self._arrived_s, head)

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
        model, self._model = self._model, None  # an idle connection keeps none in memory
        begun: Answer | Work | None = self._refusal
        if begun is None:
            body = self._received[-self._head.length :]
            begun = self._path.begin(self._head, model, body, self._arrived_s)
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
            self.transport.write(self._encode(answer, close=not self._keep))
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
        self._rest_from(time.monotonic())
        if self.timeout_keep_alive_task is None:
            self._close_when_idle(self.timeout_keep_alive)

    def _close_when_idle(self, after_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(after_s, self.timeout_keep_alive_handler)


def _nothing_ordinary(head: bytes) -> Head | None:  # noqa: ARG001 - in place of `Heads.read`
    return None
