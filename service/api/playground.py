"""The page `/playground`, a client of this service that needs nothing from elsewhere, and what only it asks.

Page and files need no key, there is nothing of the models in them; `models` and `cut` obey keys as every route does.
"""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from bundle import BundleError
from service.api.classify import Classifier, Question
from service.api.names import TIMING_HEADER
from service.api.routes import require_json
from service.engine.tokenization import TextInput
from service.errors import QueueFullError, UnknownPathError
from service.model import Model
from service.registry import Registry
from service.settings import Settings
from service.visits import VISIT

_FOLDER = Path(__file__).parents[1] / "static"
_PAGE = "index.html"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked for each time whether it is still the same
}
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_MOST_EXAMPLES = 8
_LONGEST_EXAMPLE = 300  # characters
_MOST_CUTTING = 2
"""Texts that are cut at the same time: it takes the tokenizer as long as to classify, and passes no queue."""


class _CutRequest(BaseModel):
    """A text, or two, and the model that cut them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    version: str
    text: str
    text_pair: str | None = Field(default=None)


class _File:
    """A file of the page with its headers, in memory."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        tag = f'"{hashlib.sha256(self._content).hexdigest()[:32]}"'
        media_type = f"{_MEDIA_TYPES[path.suffix]}; charset=utf-8"
        self._headers = _HEADERS | {"Content-Type": media_type, "ETag": tag}

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 to a browser that has it."""
        if self._headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers)


def router(registry: Registry, classifier: Classifier, settings: Settings) -> APIRouter:
    """Return the routes of the page; they are no API, and not in the OpenAPI document."""
    routes = APIRouter(prefix="/playground", include_in_schema=False)
    files = {path.name: _File(path) for path in _FOLDER.iterdir() if path.is_file()}
    examples: WeakKeyDictionary[Model, list[dict[str, str | None]]] = WeakKeyDictionary()
    cutting = 0

    @routes.get("")
    async def page(request: Request) -> Response:
        return files[_PAGE].answer(request)

    @routes.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        file = files.get(name)
        if file is None:
            raise UnknownPathError("no such file of the playground")
        return file.answer(request)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """What the key may ask: every version of every model, with examples; and the bounds of a request."""
        served = [model for name in registry.names() for model in registry.versions(name)]
        return {
            "models": [await described(model) for model in served],
            "default_model": settings.default_model,
            "max_inputs": settings.max_inputs,
            "max_body_bytes": settings.max_body_bytes,
            "timing_header": TIMING_HEADER,
        }

    @routes.post("/cut", dependencies=[Depends(require_json)])
    async def cut(body: _CutRequest) -> dict[str, tuple[int, ...]]:
        """How far the model reads each text, in Unicode code points; a request, as far as quotas have to do with it."""
        nonlocal cutting
        model = registry.get(body.model, body.version)
        given: TextInput = body.text if body.text_pair is None else (body.text, body.text_pair)
        classifier.check(Question([given]), model, tags=model.tags)
        caller = VISIT.get().caller
        if caller is not None:
            caller.quota.check(time.monotonic())
            caller.quota.take_request()
        if cutting == _MOST_CUTTING:
            raise QueueFullError(f"{cutting} texts are being cut already", retry_after_s=1)
        cutting += 1
        try:
            return {"ends": (await asyncio.to_thread(model.tokenizer.reach, given)).ends}
        finally:
            cutting -= 1

    async def described(model: Model) -> dict[str, Any]:
        if model not in examples:  # golden inputs are read once
            examples[model] = await asyncio.to_thread(_examples, model)
        return _described(model) | {"examples": examples[model]}

    return routes


def _described(model: Model) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": model.name,
        "version": model.version,
        "variant": model.variant.name,
        "task": manifest.task,
        "labels": manifest.labels,
        "text_pair": manifest.text_pair,
        "max_length": manifest.max_length,
        "thresholds": model.decider.thresholds if model.decider.multi_label else None,
        "abstention": manifest.abstention["threshold"] if manifest.abstention else None,
    }


def _examples(model: Model) -> list[dict[str, str | None]]:
    """Return a few short golden inputs; none where the bundle's folder is gone or another's by now."""
    try:
        golden = model.bundle.golden()
    except (BundleError, OSError):
        return []
    short = [one for one in golden if len(one.text) + len(one.text_pair or "") <= _LONGEST_EXAMPLE]
    return [{"text": one.text, "text_pair": one.text_pair, "label": one.label} for one in short[:_MOST_EXAMPLES]]
