"""What operators and their machines ask: is it alive, is it ready, what are its metrics."""

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel

from service.board import Board
from service.registry import Registry

_RETRY_AFTER_S = 5


class Health(BaseModel):
    """The answer to a health probe."""

    status: Literal["alive", "ready", "not ready", "draining"]


def router(registry: Registry, metrics: CollectorRegistry, board: Board) -> APIRouter:
    """Return the routes for health probes and metrics. A worker among several is not ready before all have been."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/health/live", summary="200 while the process works")
    async def live() -> Health:
        return Health(status="alive")

    @routes.get(
        "/health/ready",
        summary="200 while every model is loaded, checked and answering",
        responses={503: {"model": Health, "description": "loading, draining, or a model's worker died"}},
    )
    async def ready(response: Response) -> Health:
        if registry.ready and board.opened:
            return Health(status="ready")
        response.status_code = 503
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return Health(status="draining" if registry.draining else "not ready")

    @routes.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
    async def scrape() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return routes
