"""Reads the heads of ordinary classify requests."""

from collections.abc import Sequence
from typing import NamedTuple

import httptools

from service.api.names import (
    AUTHORIZATION,
    MODEL_ROUTE,
    PRIORITY_HEADER,
    REQUEST_ID,
    ROUTE,
    TIMEOUT_HEADER,
    TIMING_HEADER,
    TRACEPARENT,
    VERSION_ROUTE,
)
from service.engine.queue import Priority
from service.settings import MAX_TIMEOUT_MS, Settings

Headers = Sequence[tuple[bytes, bytes]]

LONGEST_TARGET_BYTES = 8192
"""Of path and query. RFC 9112 (section 3) wants 8000 at least; ours have a name or two in them."""

_MOST_REMEMBERED = 4096  # heads; a client that sends a new one each time must not fill the memory
_LONGEST_REMEMBERED = 2048  # bytes

_JSON = frozenset((b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"))
_TIMEOUT, _PRIORITY = TIMEOUT_HEADER.encode(), PRIORITY_HEADER.encode()
_READ = frozenset((b"content-type", b"content-length", _TIMEOUT, _PRIORITY, AUTHORIZATION, REQUEST_ID, TRACEPARENT))
# the last changes the answer, whose head then tells times
_CHANGING_THE_BODY = frozenset(
    (b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", TIMING_HEADER.encode())
)
_PRIORITIES = {priority.value.encode(): priority for priority in Priority}
_LONGEST_TIMEOUT = len(str(MAX_TIMEOUT_MS))


class Target(NamedTuple):
    """The template of a path, as FastAPI names it, and what stands in its braces."""

    route: str
    model: str | None = None
    version: str | None = None


class Head(NamedTuple):
    """What the head of an ordinary request says; `length` are the bytes of the body."""

    target: Target
    length: int
    keep_alive: bool
    timeout_ms: int | None
    priority: Priority | None
    authorization: bytes | None = None
    request_id: bytes | None = None
    traceparent: bytes | None = None


class Heads:
    """Reads heads, and remembers what they said: a client repeats its own byte for byte.

    What is beyond a bound is left to `service.connection`, which says so.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._max_header_bytes = settings.max_header_bytes
        self._max_headers = settings.max_headers
        # answers to pages of other origins have headers that the framework adds
        self._odd = _CHANGING_THE_BODY | ({b"origin"} if settings.cors_origins else set())
        self._known: dict[bytes, Head | None] = {}

    def read(self, head: bytes) -> Head | None:
        """Return what a head, its empty line included, asks for; None when something in it is not ordinary."""
        if head in self._known:
            return self._known[head]
        found = self._parse(head)
        if len(head) <= _LONGEST_REMEMBERED and (found is None or not (found.request_id or found.traceparent)):
            if len(self._known) == _MOST_REMEMBERED:
                self._known.clear()
            self._known[head] = found
        return found

    def _parse(self, head: bytes) -> Head | None:
        parts = _Parts()
        parser = httptools.HttpRequestParser(parts)
        try:
            parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        if not parts.complete or parser.get_http_version() != "1.1" or parser.get_method() != b"POST":
            return None
        if len(head) > self._max_header_bytes or len(parts.headers) > self._max_headers:
            return None
        if len(parts.url) > LONGEST_TARGET_BYTES:
            return None
        target, options = _target(parts.url), self._options(parts.headers)
        if target is None or options is None:
            return None
        length, timeout_ms, priority = options
        headers = dict(parts.headers)
        return Head(
            target,
            length,
            parser.should_keep_alive(),
            timeout_ms,
            priority,
            headers.get(AUTHORIZATION),
            headers.get(REQUEST_ID),
            headers.get(TRACEPARENT),
        )

    def _options(self, headers: Headers) -> tuple[int, int | None, Priority | None] | None:
        """Return length, timeout and priority."""
        known = dict(headers)
        if known.get(b"content-type") not in _JSON or not self._odd.isdisjoint(known):
            return None
        if len(known) != len(headers) and _repeats(headers):
            return None
        length, timeout, priority = known.get(b"content-length", b""), known.get(_TIMEOUT), known.get(_PRIORITY)
        if not length.isdigit() or not 0 < int(length) <= self._max_body_bytes:
            return None
        if timeout is not None and not (timeout.isdigit() and len(timeout) <= _LONGEST_TIMEOUT):
            return None
        timeout_ms = None if timeout is None else int(timeout)
        if timeout_ms is not None and not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
            return None
        if priority is not None and priority not in _PRIORITIES:
            return None
        return int(length), timeout_ms, None if priority is None else _PRIORITIES[priority]


class _Parts:
    """The parts of a head, as httptools' parser calls them out."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


_DEFAULT = Target(ROUTE)


def _target(url: bytes) -> Target | None:
    """Return whom a path asks, when it is one that the fast path answers."""
    if b"%" in url:
        return None
    path = url.partition(b"?")[0].decode("ascii", "replace")
    if path == ROUTE:
        return _DEFAULT
    match path.split("/"):
        case ["", "v1", "models", model, "classify"]:
            return Target(MODEL_ROUTE, model)
        case ["", "v1", "models", model, "versions", version, "classify"]:
            return Target(VERSION_ROUTE, model, version)
    return None


def _repeats(headers: Headers) -> bool:
    """Say whether a header that is read here comes more than once."""
    read = [name for name, _ in headers if name in _READ]
    return len(read) != len(set(read))
