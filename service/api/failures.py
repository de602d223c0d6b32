"""The one place that turns errors into HTTP responses; nothing of the inside reaches a client."""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    BodyTooLargeError,
    ClientGoneError,
    ConnectionEndingError,
    DrainingError,
    ForbiddenError,
    InvalidInputError,
    MethodError,
    RequestTimeoutError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedError,
    UnknownPathError,
)
from service.metrics import Metrics
from service.visits import VISIT

log = logging.getLogger(__name__)

_FOUND_CHARACTERS = 60

# pydantic's kinds of problems whose own words speak of Python
_EXPECTED = {
    "model_attributes_type": "expected a JSON object",
    "model_type": "expected a JSON object",
    "dict_type": "expected a JSON object",
    "list_type": "expected a list",
}


class Dialect(NamedTuple):
    """How a dialect says errors: whether a path is its own, and the status and body of an error there."""

    owns: Callable[[str], bool]
    explain: Callable[[ServiceError], tuple[int, dict[str, Any]]]


class Failures:
    """The answers to everything that goes wrong; paths that no other dialect owns get the service's own shape."""

    def __init__(self, metrics: Metrics, dialects: Sequence[Dialect] = ()) -> None:
        self._metrics = metrics
        self._dialects = dialects

    def install(self, app: FastAPI) -> None:
        """Give `app` the handlers and the middleware that answer every failure."""

        async def answer(request: Request, error: Exception) -> Response:
            headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
            return self._counted(translate(error), request.scope["path"], headers)

        for kind in (ServiceError, RequestValidationError, HTTPException, ClientDisconnect):
            app.add_exception_handler(kind, answer)
        app.add_middleware(UnexpectedErrorMiddleware, failures=self)

    def respond_to(self, error: BaseException, method: str, path: str) -> Response:
        """Return the response to whatever ended a request; a fault of the service is logged."""
        if isinstance(error, ServiceError):
            return self._counted(error, path)
        if isinstance(error, asyncio.CancelledError):
            # Only the server cancels, when the shutdown's time is up; the client still deserves an answer.
            return self.respond(DrainingError("the service shut down before this request was finished"), path)
        log.error("unexpected error on %s %s", method, path, exc_info=error)
        return self.respond(UnexpectedError(), path)

    def respond(self, error: ServiceError, path: str, headers: dict[str, str] | None = None) -> Response:
        """Return the response to an error, with `headers` (such as Allow) added to its own."""
        if (visit := VISIT.get(None)) is not None:
            visit.error = error.code
        status, body = error.status, error.body()
        for dialect in self._dialects:
            if dialect.owns(path):
                status, body = dialect.explain(error)
                break
        headers = {**(headers or {}), **error.headers()}
        return Response(json.dumps(_encodable(body)), status, headers, "application/json")

    def count(self, error: ServiceError) -> None:
        """Count an error that turns a request away before a model has anything to do with it."""
        if isinstance(
            error, UnavailableError | BodyTooLargeError | ConnectionEndingError | UnauthorizedError | ForbiddenError
        ):
            self._metrics.rejected.labels(error.code).inc()

    def _counted(self, error: ServiceError, path: str, headers: dict[str, str] | None = None) -> Response:
        self.count(error)
        return self.respond(error, path, headers)


def translate(error: Exception) -> ServiceError:
    """Say an error of FastAPI's or Starlette's as one of ours."""
    match error:
        case ServiceError():
            return error
        case RequestValidationError():
            return _invalid(error.errors()[0])
        case HTTPException(status_code=404):
            return UnknownPathError("no such path; GET /docs lists those there are")
        case HTTPException(status_code=405):
            return MethodError("the path does not take this method; the header Allow lists those it takes")
        case HTTPException(status_code=408):
            return RequestTimeoutError(str(error.detail))
        case HTTPException(status_code=413):
            return BodyTooLargeError(str(error.detail))
        case HTTPException(status_code=400):  # FastAPI: the body's reader failed in a way that is not a JSON error
            if isinstance(error.__cause__, ClientDisconnect):
                return _left()
            if isinstance(error.__cause__, UnicodeDecodeError):
                return InvalidInputError("body", f"not UTF-8 at byte {error.__cause__.start}")
            return InvalidInputError("body", "cannot be read as JSON")
        case ClientDisconnect():
            return _left()
        case _:
            return UnexpectedError()


class UnexpectedErrorMiddleware:
    """Answers what no handler caught: faults of the service with 500, cancellation at shutdown with 503."""

    def __init__(self, app: ASGIApp, failures: Failures) -> None:
        self.app = app
        self._failures = failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer for the app when it fails."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except (Exception, asyncio.CancelledError) as error:
            if started:
                raise  # half an answer is out: the server must close the connection
            response = self._failures.respond_to(error, scope["method"], scope["path"])
            await response(scope, receive, send)


def _left() -> ClientGoneError:
    return ClientGoneError("the client closed the connection in the middle of its request")


def _invalid(problem: dict[str, Any]) -> InvalidInputError:
    """Say one of pydantic's problems: which field, what was found, what was expected."""
    kind, where = problem["type"], problem["loc"]
    if kind == "json_invalid":
        return InvalidInputError("body", f"not JSON at character {where[-1]}: {problem['ctx']['error']}")
    field = _field(where)
    if kind == "missing":
        return InvalidInputError(field, "required, but missing")
    if kind == "extra_forbidden":
        return InvalidInputError(field, "unknown key; GET /docs lists the known ones")
    if kind == "string_unicode":  # in a key; `check_inputs` finds those in texts
        return InvalidInputError(field, "found half of a surrogate pair, expected whole Unicode characters")
    message = _EXPECTED.get(kind, problem["msg"].removeprefix("Value error, "))
    return InvalidInputError(field, f"{message[:1].lower()}{message[1:]}, found {_found(problem['input'])}")


def _field(where: tuple[int | str, ...]) -> str:
    """Write `("body", "inputs", 3, "(pair)", "text")` as `inputs[3].text`; the tags of unions are in parentheses."""
    field = ""
    for part in where[1:]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif not part.startswith("("):
            field += f".{part[:_FOUND_CHARACTERS]}" if field else part[:_FOUND_CHARACTERS]
    return field or "body"


def _found(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, bytes):
        return "bytes"
    text = json.dumps(value)
    return text if len(text) <= _FOUND_CHARACTERS else f"{text[:_FOUND_CHARACTERS]}…"


def _encodable(value: Any) -> Any:
    """Replace lone surrogates, which a client may send in a key but no UTF-8 can carry back."""
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
