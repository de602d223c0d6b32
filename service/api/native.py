"""The native API: classify with the default model, a named one or a pinned version; list and describe models."""

from typing import Any

from fastapi import APIRouter, Depends, Request

from service.api.disconnect import unless_client_leaves
from service.api.inputs import check_inputs
from service.api.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    ErrorBody,
    LabelScore,
    ModelCard,
    ModelDetails,
    ModelList,
    Result,
)
from service.engine.postprocess import rank
from service.engine.request import Classified
from service.errors import (
    BodyTooLargeError,
    ContentTypeError,
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
)


def require_json(request: Request) -> None:
    """Raise ContentTypeError unless the body is declared as JSON in UTF-8."""
    declared = request.headers.get("content-type", "")
    media_type, *parameters = (part.strip().lower() for part in declared.split(";"))
    charsets = [parameter for parameter in parameters if parameter.startswith("charset=")]
    if media_type != "application/json" or not set(charsets) <= {"charset=utf-8", 'charset="utf-8"'}:
        raise ContentTypeError(f"found content type {declared[:64] or 'none'}, expected application/json in UTF-8")


def router(registry: Registry, max_inputs: int) -> APIRouter:
    """Return the routes of the native API."""
    routes = APIRouter(prefix="/v1")
    classifies: dict[str, Any] = {
        "tags": ["classify"],
        "dependencies": [Depends(require_json)],
        "responses": _CLASSIFY_ERRORS,
    }

    async def answer(model: Model, body: ClassifyRequest, request: Request) -> ClassifyResponse:
        request.state.model = model.manifest.name
        inputs = [given if isinstance(given, str) else (given.text, given.text_pair) for given in body.inputs]
        check_inputs(inputs, model.manifest, max_inputs)
        results = await unless_client_leaves(request, model.batcher.classify(inputs))
        return ClassifyResponse(
            model=model.manifest.name,
            version=model.manifest.version,
            variant=model.variant.name,
            results=[_result(result, model.manifest.labels, body.top_k) for result in results],
        )

    @routes.post("/classify", summary="Classify with the only or the default model", **classifies)
    async def classify(body: ClassifyRequest, request: Request) -> ClassifyResponse:
        return await answer(registry.get(), body, request)

    @routes.post("/models/{model}/classify", summary="Classify with a model's highest version", **classifies)
    async def classify_with_model(model: str, body: ClassifyRequest, request: Request) -> ClassifyResponse:
        return await answer(registry.get(model), body, request)

    @routes.post("/models/{model}/versions/{version}/classify", summary="Classify with a pinned version", **classifies)
    async def classify_with_version(
        model: str, version: str, body: ClassifyRequest, request: Request
    ) -> ClassifyResponse:
        return await answer(registry.get(model, version), body, request)

    @routes.get("/models", summary="List the models", tags=["models"], responses=_documented(NotReadyError("loading")))
    async def list_models() -> ModelList:
        return ModelList(data=[_card(registry.versions(name)) for name in registry.names()])

    @routes.get(
        "/models/{model}",
        summary="Describe a model",
        tags=["models"],
        responses=_MODEL_ERRORS | {"default": {"model": ErrorBody, "description": "any other error"}},
    )
    async def describe_model(model: str, request: Request) -> ModelDetails:
        versions = registry.versions(model)
        request.state.model = versions[0].manifest.name
        return _details(versions)

    return routes


def _result(classified: Classified, labels: tuple[str, ...], top_k: int | None) -> Result:
    ranked = rank(classified.scores, labels, top_k)
    return Result(
        labels=[LabelScore(label=label, score=score) for label, score in ranked],
        truncated=classified.truncated,
        tokens=classified.tokens,
    )


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
