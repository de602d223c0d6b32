"""The native API: classify with the default model, a named one or a pinned version; list and describe models."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response

from service.api.classify import Classifier, Question
from service.api.names import MODEL_ROUTE, PRIORITY_HEADER, ROUTE, TIMEOUT_HEADER, VERSION_ROUTE
from service.api.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    ErrorBody,
    ModelCard,
    ModelDetails,
    ModelList,
    PriorityName,
    TimeoutMs,
)
from service.engine.queue import Priority
from service.errors import (
    BodyTooLargeError,
    ContentTypeError,
    DeadlineError,
    InferenceError,
    InvalidInputError,
    NotReadyError,
    QueueFullError,
    ServiceError,
    UnknownModelError,
)
from service.registry import Model, Registry


def _documented(*errors: ServiceError) -> dict[int | str, dict[str, Any]]:
    """Describe errors for the OpenAPI document, each with an example body and its headers."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        response: dict[str, Any] = {
            "model": ErrorBody,
            "description": (type(error).__doc__ or "").strip(),
            "content": {"application/json": {"example": error.body()}},
        }
        if error.headers():
            response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
        responses[error.status] = response
    return responses


_MODEL_ERRORS = _documented(
    UnknownModelError("no model 'x'; there are: tiny"), NotReadyError("models are still loading")
)
_CLASSIFY_ERRORS = _MODEL_ERRORS | _documented(
    BodyTooLargeError("body: expected at most 1048576 bytes, found 2000000 bytes; send fewer inputs"),
    ContentTypeError("found content type text/plain, expected application/json"),
    InvalidInputError("inputs[3]", "found an empty text, expected at least one character that is not white space"),
    QueueFullError("the queue has no room for 8 more entries"),
    InferenceError("inference failed; the service's log has the details"),
    DeadlineError(),
)


async def require_json(request: Request) -> None:  # async: FastAPI runs what is not in a thread, for 0.1 ms
    """Raise ContentTypeError unless the body is declared as JSON in UTF-8."""
    declared = request.headers.get("content-type", "")
    media_type, *parameters = (part.strip().lower() for part in declared.split(";"))
    charsets = [parameter for parameter in parameters if parameter.startswith("charset=")]
    if media_type != "application/json" or not set(charsets) <= {"charset=utf-8", 'charset="utf-8"'}:
        raise ContentTypeError(f"found content type {declared[:64] or 'none'}, expected application/json in UTF-8")


@dataclass(frozen=True)
class Options:
    """What headers ask for; the body's fields win."""

    timeout_ms: int | None
    priority: PriorityName | None


async def options_of_headers(
    timeout_ms: Annotated[TimeoutMs | None, Header(alias=TIMEOUT_HEADER, description="as `timeout_ms`")] = None,
    priority: Annotated[PriorityName | None, Header(alias=PRIORITY_HEADER, description="as `priority`")] = None,
) -> Options:
    """Read and check the headers."""
    return Options(timeout_ms, priority)


GivenOptions = Annotated[Options, Depends(options_of_headers)]


def router(registry: Registry, classifier: Classifier) -> APIRouter:
    """Return the routes of the native API. Most classify requests take `service.protocol`'s shorter way."""
    routes = APIRouter()
    classifies: dict[str, Any] = {
        "tags": ["classify"],
        "response_model": ClassifyResponse,
        "dependencies": [Depends(require_json)],
        "responses": _CLASSIFY_ERRORS,
    }

    async def answer(model: Model, body: ClassifyRequest, options: Options, request: Request) -> Response:
        request.state.model = model.manifest.name
        question = Question(
            [given if isinstance(given, str) else (given.text, given.text_pair) for given in body.inputs],
            request.state.arrived_s,
            body.top_k,
            body.timeout_ms or options.timeout_ms,
            Priority(body.priority or options.priority or Priority.INTERACTIVE),
        )
        classifier.check(question, model)
        return Response(await classifier.answer(question, model, request.receive), media_type="application/json")

    @routes.post(ROUTE, summary="Classify with the only or the default model", **classifies)
    async def classify(body: ClassifyRequest, options: GivenOptions, request: Request) -> Response:
        return await answer(registry.get(), body, options, request)

    @routes.post(MODEL_ROUTE, summary="Classify with a model's highest version", **classifies)
    async def classify_with_model(
        model: str, body: ClassifyRequest, options: GivenOptions, request: Request
    ) -> Response:
        return await answer(registry.get(model), body, options, request)

    @routes.post(VERSION_ROUTE, summary="Classify with a pinned version", **classifies)
    async def classify_with_version(
        model: str, version: str, body: ClassifyRequest, options: GivenOptions, request: Request
    ) -> Response:
        return await answer(registry.get(model, version), body, options, request)

    @routes.get(
        "/v1/models", summary="List the models", tags=["models"], responses=_documented(NotReadyError("loading"))
    )
    async def list_models() -> ModelList:
        return ModelList(data=[_card(registry.versions(name)) for name in registry.names()])

    @routes.get(
        "/v1/models/{model}",
        summary="Describe a model",
        tags=["models"],
        responses=_MODEL_ERRORS | {"default": {"model": ErrorBody, "description": "any other error"}},
    )
    async def describe_model(model: str, request: Request) -> ModelDetails:
        versions = registry.versions(model)
        request.state.model = versions[0].manifest.name
        return _details(versions)

    return routes


def _card(versions: list[Model]) -> ModelCard:
    return ModelCard(
        id=versions[0].manifest.name,
        ready=versions[0].ready,
        versions=[model.manifest.version for model in versions],
    )


def _details(versions: list[Model]) -> ModelDetails:
    highest = versions[0]
    manifest = highest.manifest
    return ModelDetails(
        name=manifest.name,
        ready=highest.ready,
        task=manifest.task,
        labels=list(manifest.labels),
        text_pair=manifest.text_pair,
        max_length=manifest.max_length,
        version=manifest.version,
        versions=[model.manifest.version for model in versions],
        variant=highest.variant.name,
        metrics=list(manifest.metrics),
    )
