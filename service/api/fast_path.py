"""Answers ordinary classify requests without the web framework, which costs more than a small model.

Whatever is not ordinary goes on to the routes of `service.api.native`, with the body replayed: other paths and media
types, bodies that do not decode, unknown keys, inputs and models that are refused. So every check and message of bad
input exists once, there, and this file only has to be right about what it accepts.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import failures
from service.api.classify import Classifier, Question
from service.api.names import MODEL_ROUTE, PRIORITY_HEADER, ROUTE, TIMEOUT_HEADER, VERSION_ROUTE
from service.engine.queue import Priority
from service.errors import ServiceError
from service.metrics import Metrics
from service.registry import Model, Registry
from service.settings import MAX_TIMEOUT_MS

_JSON = frozenset((b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"))
_TIMEOUT, _PRIORITY = TIMEOUT_HEADER.encode(), PRIORITY_HEADER.encode()
_READ_HEADERS = frozenset((b"content-type", b"content-length", _TIMEOUT, _PRIORITY))
_PRIORITIES = {priority.value.encode(): priority for priority in Priority}
_LONGEST_TIMEOUT = len(str(MAX_TIMEOUT_MS))


class _TextPair(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    text_pair: str


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """`schemas.ClassifyRequest`, which describes and checks it for people, in a form that is decoded in 0.2 µs."""

    inputs: str | list[str | _TextPair]
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    priority: Priority | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """The template of a path, as FastAPI names it, and what stands in its braces."""

    route: str
    model: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class _Head:
    """What is read from the headers of an ordinary request."""

    timeout_ms: int | None
    priority: Priority | None


_DEFAULT = _Target(ROUTE)
_NOTHING_GIVEN = _Head(None, None)


class FastPath:
    """An ASGI app around `app`: the outermost, so that nothing else is paid for."""

    def __init__(
        self, app: ASGIApp, registry: Registry, classifier: Classifier, metrics: Metrics, max_body_bytes: int
    ) -> None:
        self._app = app
        self._registry = registry
        self._classifier = classifier
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._refusals: dict[int | None, Response] = {}  # by Retry-After, all else in them is the same
        self._decode = msgspec.json.Decoder(_Request).decode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_s = time.monotonic()
        scope.setdefault("state", {})["arrived_s"] = arrived_s
        target = _target(scope["method"], scope["path"])
        head = self._head(scope["headers"]) if target is not None else None
        if target is None or head is None:
            await self._app(scope, receive, send)
            return
        body, messages = await self._read(receive)
        understood = None if body is None else self._understand(target, head, body, arrived_s)
        if understood is None:
            await self._app(scope, _replay(messages, receive), send)
            return
        question, model = understood
        status = await self._answer(question, model, scope, receive, send)
        self._metrics.answered(model.manifest.name, target.route, status, time.monotonic() - arrived_s)

    def refusal(self, method: bytes, url: bytes) -> Response | None:
        """Return the answer to a request for labels that the queue has no room for; None to every other."""
        if not self._registry.crowded or method != b"POST":
            return None
        target = _target("POST", url.partition(b"?")[0].decode("ascii", "replace"))
        if target is None:
            return None
        try:
            model = self._registry.get(target.model, target.version)
        except ServiceError:
            return None  # the app says what is wrong
        if not model.batcher.full:
            return None
        error = model.batcher.refusal()
        self._metrics.rejected.labels(error.code).inc()
        self._metrics.answered(model.manifest.name, target.route, error.status, 0.0)
        response = self._refusals.get(error.retry_after_s)
        if response is None:  # at most 60 of them
            response = self._refusals[error.retry_after_s] = failures.respond(error)
        return response

    def _head(self, headers: list[tuple[bytes, bytes]]) -> _Head | None:
        """Return the options given in headers, or None when something there is not ordinary."""
        known = dict(headers)
        if known.get(b"content-type") not in _JSON:
            return None
        declared = known.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max_body_bytes:
            return None
        if len(known) != len(headers) and _repeats(headers):
            return None
        timeout, priority = known.get(_TIMEOUT), known.get(_PRIORITY)
        if timeout is None and priority is None:
            return _NOTHING_GIVEN
        if timeout is not None and not (timeout.isdigit() and len(timeout) <= _LONGEST_TIMEOUT):
            return None
        timeout_ms = None if timeout is None else int(timeout)
        if timeout_ms is not None and not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
            return None
        if priority is not None and priority not in _PRIORITIES:
            return None
        return _Head(timeout_ms, None if priority is None else _PRIORITIES[priority])

    async def _read(self, receive: Receive) -> tuple[bytes | None, list[Message]]:
        """Return the body and the messages read; for the body None when it is too large or broken off."""
        messages: list[Message] = []
        body = b""
        while True:
            message = await receive()
            messages.append(message)
            if message["type"] != "http.request":
                return None, messages
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                return None, messages
            if not message.get("more_body"):
                return body, messages

    def _understand(self, target: _Target, head: _Head, body: bytes, arrived_s: float) -> tuple[Question, Model] | None:
        """Return what is asked and of which model, or None when it is not ordinary, or to be refused."""
        try:
            asked = self._decode(body)
        except (ValueError, RecursionError):
            return None
        inputs = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        question = Question(
            [given if isinstance(given, str) else (given.text, given.text_pair) for given in inputs],
            arrived_s,
            asked.top_k,
            asked.timeout_ms or head.timeout_ms,
            asked.priority or head.priority or Priority.INTERACTIVE,
        )
        try:
            model = self._registry.get(target.model, target.version)
            self._classifier.check(question, model)
        except Exception:  # noqa: BLE001 - refusal or fault, the route meets it again and answers
            return None
        return question, model

    async def _answer(self, question: Question, model: Model, scope: Scope, receive: Receive, send: Send) -> int:
        """Send the engine's answer, or what went wrong, and return the status."""
        try:
            body = await self._classifier.answer(question, model, receive)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the client gets an answer
            response = failures.respond_to(error, scope, self._metrics)
            await response(scope, receive, send)
            return response.status_code
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return 200


def _target(method: str, path: str) -> _Target | None:
    """Return whom the path asks, when it is one that this file answers."""
    if method != "POST":
        return None
    if path == ROUTE:
        return _DEFAULT
    match path.split("/"):
        case ["", "v1", "models", model, "classify"]:
            return _Target(MODEL_ROUTE, model)
        case ["", "v1", "models", model, "versions", version, "classify"]:
            return _Target(VERSION_ROUTE, model, version)
    return None


def _repeats(headers: list[tuple[bytes, bytes]]) -> bool:
    """Say whether a header that is read here comes more than once."""
    read = [name for name, _ in headers if name in _READ_HEADERS]
    return len(read) != len(set(read))


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that gives `messages` first."""
    remaining: Any = iter(messages)

    async def replayed() -> Message:
        return next(remaining, None) or await receive()

    return replayed
