"""What happens to every request, whatever way it takes: it is let in by its key, and counted and told of at its end."""

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.failures import Failures
from service.api.names import AUTHORIZATION, REQUEST_ID, TIMING_HEADER, TRACEPARENT
from service.errors import ServiceError, UnauthorizedError
from service.keys import Keyring, secret_of
from service.metrics import Metrics
from service.request_log import RequestLog
from service.visits import VISIT, Visit

if TYPE_CHECKING:
    from service.tracing import Tracing

_OPEN = re.compile(r"/(health(/.*)?|ping|v2/health/.*|metrics|docs(/.*)?|redoc|openapi\.json|playground(/static/.*)?)")
_TIMING = TIMING_HEADER.encode()
_GOOD_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_GONE = 499


class Journal:
    """Opens and closes the visit that each request is; one for each app.

    Without `keyring` everybody may ask. `dialects` names a route's dialect by the template of its path.
    """

    def __init__(
        self,
        metrics: Metrics,
        dialects: Mapping[str, str],
        keyring: Keyring | None = None,
        request_log: RequestLog | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._metrics = metrics
        self._dialects = dialects
        self._keyring = keyring
        self._log = request_log
        self._tracing = tracing
        if request_log is not None:
            metrics.log_lines_dropped.set_function(lambda: float(request_log.dropped))

    def open(self, arrived_s: float, request_id: bytes | None, traceparent: bytes | None) -> Visit:
        """Return the visit of a request that has arrived."""
        visit = Visit(arrived_s, traceparent=traceparent or b"")
        if self._log is not None:
            good = request_id is not None and _GOOD_ID.fullmatch(request_id)
            visit.request_id = request_id.decode() if good and request_id else secrets.token_hex(8)
            if self._log.wants_texts():
                visit.texts = ()
        return visit

    def admit(self, visit: Visit, authorization: bytes | None, path: str) -> None:
        """Note who asks; raises UnauthorizedError when no key lets the request in."""
        if self._keyring is None or _OPEN.fullmatch(path):
            return
        visit.caller = self._keyring.find(secret_of(authorization or b""))
        if visit.caller is None:
            found = "none" if authorization is None else "one that is not known"
            raise UnauthorizedError(f"found {found}, expected an API key in the header Authorization: Bearer KEY")

    def headers(self, visit: Visit) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer to a visit has: its id and what is left of the caller's quota."""
        found = [(REQUEST_ID, visit.request_id.encode())] if visit.request_id else []
        if visit.caller is not None and visit.caller.quota.bounded:
            found += visit.caller.quota.headers(time.monotonic())
        return found

    def close(self, visit: Visit, method: str, status: int) -> None:
        """Count and tell of a request that was answered."""
        now_s = time.monotonic()
        took_s = now_s - visit.arrived_s
        visit.release()
        visit.dialect = visit.dialect or self._dialects.get(visit.route, "")
        self._metrics.answered(visit, status, now_s)
        if visit.trial is not None:
            visit.trial.answered(visit, status)
        if visit.caller is not None:
            visit.caller.quota.take_tokens(visit.tokens)
        if self._log is not None:
            self._log.add(visit, method, status, took_s)
        if self._tracing is not None:
            self._tracing.record(visit, method, status, took_s)

    def finish(self) -> None:
        """Write what is left of log and traces."""
        if self._log is not None:
            self._log.close()
        if self._tracing is not None:
            self._tracing.close()


class JournalMiddleware:
    """Makes a visit of each HTTP request that goes through the framework; answers those whose key lets nobody in."""

    def __init__(self, app: ASGIApp, journal: Journal, failures: Failures) -> None:
        self.app = app
        self._journal = journal
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `send` that sees the status."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = _GONE  # stays when nobody was left to answer
        headers = scope["headers"]
        visit = self._journal.open(time.monotonic(), _header(headers, REQUEST_ID), _header(headers, TRACEPARENT))

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._journal.headers(visit)]
                if visit.inputs and _header(headers, _TIMING) is not None:
                    message["headers"].append((b"server-timing", visit.timing().encode()))
            await send(message)

        token = VISIT.set(visit)
        try:
            try:
                self._journal.admit(visit, _header(headers, AUTHORIZATION), scope["path"])
            except ServiceError as error:
                response = self._failures.respond_to(error, scope["method"], scope["path"])
                await response(scope, receive, watched_send)
            else:
                await self.app(scope, receive, watched_send)
        finally:
            VISIT.reset(token)
            visit.route = getattr(scope.get("route"), "path", visit.route)
            self._journal.close(visit, scope["method"], status)


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)
