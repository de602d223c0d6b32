"""The Open Inference Protocol, version 2, as Triton, KServe and MLServer speak it over HTTP."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from service.api.classify import Classifier
from service.api.compressed import read_body
from service.api.failures import Dialect
from service.api.openinference_infer import arrays_of, is_raw, question_of, ranked, wanted_of
from service.api.openinference_info import config, index, metadata, statistics
from service.api.routes import ASK_EXAMPLES, documented, require_admin
from service.api.tensors import read_request, texts_of, write_response
from service.errors import (
    ContentTypeError,
    InvalidInputError,
    LoadError,
    RateLimitedError,
    ServiceError,
    UnavailableError,
)
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.model import Model
from service.registry import Registry
from service.settings import Settings

JSON_LENGTH = "Inference-Header-Content-Length"
_EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "statistics", "model_repository"]


class V2Error(BaseModel):
    """What went wrong."""

    error: str


def explain(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error in the protocol's words."""
    status = 400 if isinstance(error, InvalidInputError | ContentTypeError | LoadError) else error.status
    busy = isinstance(error, UnavailableError) and not isinstance(error, RateLimitedError)
    return 503 if busy else status, {"error": error.message}


DIALECT = Dialect(lambda path: path == "/v2" or path.startswith("/v2/"), explain)

_ERRORS: dict[int | str, dict[str, Any]] = documented(*ASK_EXAMPLES, explain=explain, model=V2Error) | {
    "default": {"model": V2Error, "description": "any other error"}
}
_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array"}}},
                "example": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["A fine film."]}]},
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def router(
    registry: Registry, classifier: Classifier, settings: Settings, metrics: Metrics, lifecycle: Lifecycle
) -> APIRouter:
    """Return the routes; those that load and unload only when the settings allow an administrator."""
    routes = APIRouter(tags=["open inference protocol"])
    _add_server(routes, registry, metrics, lifecycle)
    if settings.admin:
        _add_repository(routes, lifecycle)

    async def asked(model: str) -> Model:
        return registry.get(model)

    async def described(model: str) -> Model:
        return registry.get(model, asks=False)

    async def pinned(model: str, version: str) -> Model:
        return registry.get(model, version)

    _add_model(routes, "/v2/models/{model}", described, registry, settings, metrics)
    _add_infer(routes, "/v2/models/{model}", asked, classifier, settings)
    _add_model(routes, "/v2/models/{model}/versions/{version}", pinned, registry, settings, metrics)
    _add_infer(routes, "/v2/models/{model}/versions/{version}", pinned, classifier, settings)
    return routes


def _add_repository(routes: APIRouter, lifecycle: Lifecycle) -> None:
    """Add what an administrator may do."""
    failing = _ERRORS | documented(LoadError("cannot load bundle"), explain=explain, model=V2Error)

    @routes.post(
        "/v2/repository/models/{model}/load",
        summary="Take a model into service, or its changed bundle",
        responses=failing,
        response_class=Response,
        dependencies=[Depends(require_admin)],
    )
    async def load(model: str) -> Response:
        await lifecycle.load(model)
        return Response()

    @routes.post(
        "/v2/repository/models/{model}/unload",
        summary="Take a model out of service",
        responses=_ERRORS,
        response_class=Response,
        dependencies=[Depends(require_admin)],
    )
    async def unload(model: str) -> Response:
        await lifecycle.unload(model)
        return Response()


def _add_server(routes: APIRouter, registry: Registry, metrics: Metrics, lifecycle: Lifecycle) -> None:
    """Add what concerns the server as a whole."""

    def all_models() -> list[Model]:
        return [model for name in registry.names() for model in registry.versions(name)]

    @routes.get("/v2", summary="Describe the server")
    async def server() -> dict[str, Any]:
        return {"name": "limbeck", "version": "1", "extensions": _EXTENSIONS}

    @routes.get("/v2/health/live", summary="200 while the process works", response_class=Response)
    async def live() -> Response:
        return Response()

    @routes.get(
        "/v2/health/ready",
        summary="200 while every model answers, else 400",
        responses={400: {}},
        response_class=Response,
    )
    async def ready() -> Response:
        return Response(status_code=200 if registry.ready else 400)

    @routes.get("/v2/models/stats", summary="What all models did", responses=_ERRORS)
    async def all_stats() -> dict[str, Any]:
        return statistics(all_models(), metrics)

    @routes.post("/v2/repository/index", summary="Which models there are", responses=_ERRORS)
    async def repository_index() -> list[dict[str, str]]:
        return index(all_models(), registry, lifecycle)


def _add_model(
    routes: APIRouter,
    path: str,
    chosen: Callable[..., Awaitable[Model]],
    registry: Registry,
    settings: Settings,
    metrics: Metrics,
) -> None:
    """Add what is told of one model, which `chosen` finds."""
    described: dict[str, Any] = {"responses": _ERRORS}

    @routes.get(f"{path}/ready", summary="200 while the model answers, else 400", response_class=Response, **described)
    async def model_ready(found: Annotated[Model, Depends(chosen)]) -> Response:
        return Response(status_code=200 if found.ready else 400)

    @routes.get(f"{path}/config", summary="The model's configuration", **described)
    async def model_config(found: Annotated[Model, Depends(chosen)]) -> dict[str, Any]:
        return config(found, settings)

    @routes.get(f"{path}/stats", summary="What the model did", **described)
    async def model_stats(found: Annotated[Model, Depends(chosen)]) -> dict[str, Any]:
        return statistics([found], metrics)

    @routes.get(path, summary="The model's inputs and outputs", **described)
    async def model_metadata(found: Annotated[Model, Depends(chosen)]) -> dict[str, Any]:
        return metadata(found, registry.versions(found.manifest.name))


def _add_infer(
    routes: APIRouter, path: str, chosen: Callable[..., Awaitable[Model]], classifier: Classifier, settings: Settings
) -> None:
    """Add what one model, which `chosen` finds, is for."""

    @routes.post(f"{path}/infer", summary="Classify or tag", openapi_extra=_REQUEST, responses=_ERRORS)
    async def infer(found: Annotated[Model, Depends(chosen)], request: Request) -> Response:
        body = await read_body(request, settings.max_body_bytes)
        asked, raw = read_request(body, request.headers.get(JSON_LENGTH))
        question = question_of(asked, texts_of(asked.inputs, raw), found)
        wanted = wanted_of(asked, found)
        results = await classifier.ask(question, found, request.receive, tags=found.tags)
        arrays = await arrays_of(question, found, results)
        outputs = [(one.name, ranked(one, arrays[one.name], found), is_raw(one, asked)) for one in wanted]
        head = {"model_name": found.manifest.name, "model_version": found.manifest.version}
        answer, json_length = write_response(head | ({"id": asked.id} if asked.id else {}), outputs)
        if json_length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, headers={JSON_LENGTH: str(json_length)}, media_type="application/octet-stream")
