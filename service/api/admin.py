"""What an administrator may do, in the native API's form: list, load and unload models."""

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from service.api.routes import KEY_EXAMPLES, LIST_ERRORS, documented, require_admin
from service.errors import LoadError, NotReadyError, UnknownModelError
from service.lifecycle import Lifecycle
from service.registry import Registry


class ModelState(BaseModel):
    """A model that is served, or not."""

    name: str
    versions: list[str] = Field(description="in service, first what answers where none is named")
    state: Literal["ready", "not ready", "unloaded", "failed"]
    problem: str = Field(default="", description="why its bundle, as it is now, could not be taken into service")


class ModelStates(BaseModel):
    """All models that the service knows of."""

    data: list[ModelState]


_FAILING = documented(
    *KEY_EXAMPLES,
    UnknownModelError("no bundle 'x' in the model folder or among the bundles"),
    LoadError("cannot load bundle /models/x: HashMismatchError: …"),
    NotReadyError("models are still loading"),
)


def router(registry: Registry, lifecycle: Lifecycle) -> APIRouter:
    """Return the routes, for administrators' keys only."""
    routes = APIRouter(prefix="/v1/admin", tags=["administration"], dependencies=[Depends(require_admin)])

    @routes.get("/models", summary="List models and their states", responses=LIST_ERRORS)
    async def list_models() -> ModelStates:
        known = sorted(set(registry.names()) | lifecycle.unloaded | lifecycle.failures.keys())
        return ModelStates(data=[_state(name, registry, lifecycle) for name in known])

    @routes.post("/models/{model}/load", summary="Take a model into service, or its changed bundle", responses=_FAILING)
    async def load(model: str) -> ModelState:
        await lifecycle.load(model)
        return _state(model, registry, lifecycle)

    @routes.post("/models/{model}/unload", summary="Take a model out of service", responses=_FAILING)
    async def unload(model: str) -> ModelState:
        await lifecycle.unload(model)
        return _state(model, registry, lifecycle)

    return routes


def _state(name: str, registry: Registry, lifecycle: Lifecycle) -> ModelState:
    models = [model for model in registry.all() if model.name == name]
    problem = lifecycle.failures.get(name, "")
    if models:
        ready = all(model.ready for model in models)
        versions = [model.version for model in models]
        return ModelState(name=name, versions=versions, state="ready" if ready else "not ready", problem=problem)
    return ModelState(name=name, versions=[], state="failed" if problem else "unloaded", problem=problem)
