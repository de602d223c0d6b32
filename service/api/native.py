"""The native API: classify with the default model, a named one or a pinned version; list and describe models."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from bundle.manifest import Activation
from service.api.classify import Aggregate, Classifier, Question
from service.api.names import MODEL_ROUTE, ROUTE, VERSION_ROUTE
from service.api.routes import (
    ASK_ERRORS,
    LIST_ERRORS,
    MODEL_ERRORS,
    GivenOptions,
    HeaderOptions,
    reading_of,
    require_json,
)
from service.api.schemas import ClassifyRequest, ClassifyResponse, ErrorBody, ModelCard, ModelDetails, ModelList
from service.engine.queue import Priority
from service.model import Model
from service.registry import Registry


def router(registry: Registry, classifier: Classifier) -> APIRouter:
    """Return the routes of the native API. Most classify requests take `service.protocol`'s shorter way."""
    routes = APIRouter()
    classifies: dict[str, Any] = {
        "tags": ["classify"],
        "response_model": ClassifyResponse,
        "dependencies": [Depends(require_json)],
        "responses": ASK_ERRORS,
    }

    async def answer(model: Model, body: ClassifyRequest, options: HeaderOptions, request: Request) -> Response:
        question = Question(
            [given if isinstance(given, str) else (given.text, given.text_pair) for given in body.inputs],
            body.top_k,
            body.timeout_ms or options.timeout_ms,
            Priority(body.priority or options.priority or Priority.INTERACTIVE),
            reading_of(body, model),
            None if body.function_to_apply is None else Activation(body.function_to_apply),
            Aggregate(body.aggregate),
        )
        results = await classifier.ask(question, model, request.receive)
        return Response(classifier.encode(question, model, results), media_type="application/json")

    @routes.post(ROUTE, summary="Classify with the only or the default model", **classifies)
    async def classify(body: ClassifyRequest, options: GivenOptions, request: Request) -> Response:
        return await answer(registry.get(), body, options, request)

    @routes.post(MODEL_ROUTE, summary="Classify with a model", **classifies)
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
        "/v1/models",
        summary="List the models",
        tags=["models"],
        responses=LIST_ERRORS,
    )
    async def list_models() -> ModelList:
        return ModelList(data=[_card(registry.versions(name)) for name in registry.names()])

    @routes.get(
        "/v1/models/{model}",
        summary="Describe a model",
        tags=["models"],
        responses=MODEL_ERRORS | {"default": {"model": ErrorBody, "description": "any other error"}},
    )
    async def describe_model(model: str) -> ModelDetails:
        versions = registry.versions(model)
        return _details(versions)

    return routes


def _card(versions: list[Model]) -> ModelCard:
    return ModelCard(
        id=versions[0].manifest.name,
        ready=versions[0].ready,
        versions=[model.manifest.version for model in versions],
    )


def _details(versions: list[Model]) -> ModelDetails:
    answering = versions[0]
    manifest = answering.manifest
    return ModelDetails(
        name=manifest.name,
        ready=answering.ready,
        task=manifest.task,
        labels=list(manifest.labels),
        text_pair=manifest.text_pair,
        max_length=manifest.max_length,
        version=manifest.version,
        versions=[model.manifest.version for model in versions],
        variant=answering.variant.name,
        metrics=list(manifest.metrics),
    )
