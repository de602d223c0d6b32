"""What the routes of several dialects share: headers, documented errors, how texts are read, ranked labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel

from service.api.names import PRIORITY_HEADER, TIMEOUT_HEADER
from service.api.schemas import ErrorBody, LabelScore, Options, PriorityName, TimeoutMs
from service.engine.postprocess import FloatArray, rank
from service.engine.tokenization import HEAD, Keep, Reading
from service.errors import (
    BodyTooLargeError,
    ContentTypeError,
    DeadlineError,
    ForbiddenError,
    InferenceError,
    InvalidInputError,
    NotReadyError,
    QueueFullError,
    ServiceError,
    UnauthorizedError,
    UnknownModelError,
)
from service.model import Model
from service.visits import VISIT


def documented(
    *errors: ServiceError,
    explain: Callable[[ServiceError], tuple[int, dict[str, Any]]] = lambda error: (error.status, error.body()),
    model: type[BaseModel] = ErrorBody,
) -> dict[int | str, dict[str, Any]]:
    """Describe errors for the OpenAPI document, each with an example body and its headers, as a dialect says them."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        status, body = explain(error)
        response: dict[str, Any] = {
            "model": model,
            "description": (type(error).__doc__ or "").strip(),
            "content": {"application/json": {"example": body}},
        }
        if error.headers():
            response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
        responses[status] = response
    return responses


KEY_EXAMPLES: tuple[ServiceError, ...] = (
    UnauthorizedError("found none, expected an API key in the header Authorization: Bearer KEY"),
    ForbiddenError("key search-team does not allow model x"),
)
"""What a request may be answered with where there are API keys."""
ASK_EXAMPLES: tuple[ServiceError, ...] = (
    *KEY_EXAMPLES,
    UnknownModelError("no model 'x'; there are: tiny"),
    NotReadyError("models are still loading"),
    BodyTooLargeError("body: expected at most 1048576 bytes, found 2000000 bytes; send fewer inputs"),
    ContentTypeError("found content type text/plain, expected application/json"),
    InvalidInputError("inputs[3]", "found an empty text, expected at least one character that is not white space"),
    QueueFullError("the queue has no room for 8 more entries"),
    InferenceError("inference failed; the service's log has the details"),
    DeadlineError(),
)
"""What a request to a model may be answered with, whatever the dialect."""
LIST_ERRORS = documented(*KEY_EXAMPLES, NotReadyError("models are still loading"))
MODEL_ERRORS = documented(*ASK_EXAMPLES[:4])
ASK_ERRORS = documented(*ASK_EXAMPLES)


async def require_json(request: Request) -> None:  # async: FastAPI runs what is not in a thread, for 0.1 ms
    """Raise ContentTypeError unless the body is declared as JSON in UTF-8."""
    declared = request.headers.get("content-type", "")
    media_type, *parameters = (part.strip().lower() for part in declared.split(";"))
    charsets = [parameter for parameter in parameters if parameter.startswith("charset=")]
    if media_type != "application/json" or not set(charsets) <= {"charset=utf-8", 'charset="utf-8"'}:
        raise ContentTypeError(f"found content type {declared[:64] or 'none'}, expected application/json in UTF-8")


@dataclass(frozen=True)
class HeaderOptions:
    """What headers ask for; the body's fields win."""

    timeout_ms: int | None
    priority: PriorityName | None


async def options_of_headers(
    timeout_ms: Annotated[TimeoutMs | None, Header(alias=TIMEOUT_HEADER, description="as `timeout_ms`")] = None,
    priority: Annotated[PriorityName | None, Header(alias=PRIORITY_HEADER, description="as `priority`")] = None,
) -> HeaderOptions:
    """Read and check the headers."""
    return HeaderOptions(timeout_ms, priority)


async def require_admin() -> None:
    """Raise ForbiddenError unless the request's key is an administrator's: a check of the route, whatever its path."""
    caller = VISIT.get().caller
    if caller is None or not caller.admin:
        raise ForbiddenError(f"key {caller.id if caller else ''} is not an administrator's")


GivenOptions = Annotated[HeaderOptions, Depends(options_of_headers)]


def reading_of(options: Options, model: Model) -> Reading:
    """Return how a request wants long texts to be read."""
    if options.truncate == "window":
        stride = model.manifest.max_length // 4 if options.stride is None else options.stride
        return Reading(Keep.WINDOWS, stride)
    return {"head": HEAD, "tail": Reading(Keep.TAIL), False: Reading(Keep.WHOLE)}[options.truncate]


def ranked_labels(scores: FloatArray, model: Model, top_k: int | None = None) -> list[LabelScore]:
    """Return one text's labels, highest score first."""
    return [LabelScore(label=label, score=score) for label, score in rank(scores, model.manifest.labels, top_k)]
