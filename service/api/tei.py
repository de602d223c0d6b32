"""The dialects of Text Embeddings Inference and of Hugging Face's inference clients, which share their paths.

A body with the key `parameters` is Hugging Face's; its answers are `service.api.huggingface`'s to write.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from bundle.manifest import Activation
from service.api import huggingface
from service.api.classify import Classifier, Question, scored
from service.api.failures import Dialect
from service.api.huggingface import Parameters, TokenEntity
from service.api.routes import ASK_EXAMPLES, documented, ranked_labels, require_json
from service.api.schemas import LabelScore
from service.api.tei_info import Info, info_of, measured
from service.engine.tokenization import HEAD, Keep, Reading, TextInput
from service.errors import (
    InferenceError,
    InvalidInputError,
    NoInputsError,
    QueueFullError,
    RateLimitedError,
    ServiceError,
    UnavailableError,
)
from service.model import Model
from service.registry import Registry
from service.settings import Settings
from service.visits import VISIT

_ASK_PATHS = ("/predict", "/", "/invocations")
_OTHER_PATHS = ("/health", "/ping", "/info")


Answer = list[LabelScore] | list[list[LabelScore]] | list[TokenEntity] | list[list[TokenEntity]]


class PredictRequest(BaseModel):
    """Texts to classify; unknown keys are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": "I like you."},
                {"inputs": [["I like you."], ["I hate pineapples."]], "raw_scores": False, "truncate": True},
                {"inputs": "I like you.", "parameters": {"top_k": 1}},
            ]
        }
    )

    inputs: Annotated[str, Field()] | list[str] | list[list[str]] = Field(
        description="one text; one text, or one pair of texts, in a list; or a list of such lists"
    )
    truncate: bool | None = Field(default=None, description="`false` refuses texts that are too long")
    truncation_direction: Literal["Left", "left", "Right", "right"] = Field(
        default="Right", description="which end of a text that is too long is cut off"
    )
    raw_scores: bool = Field(default=False, description="logits instead of scores")
    parameters: Parameters | None = Field(default=None, description="Hugging Face's clients: how they want the answer")


class TeiError(BaseModel):
    """What went wrong."""

    error: str
    error_type: str


def explain(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error in TEI's words."""
    kinds: list[tuple[type[ServiceError], int, str]] = [
        (NoInputsError, 400, "Empty"),
        (InvalidInputError, 422, "Validation"),
        (QueueFullError, 429, "Overloaded"),
        (RateLimitedError, 429, "Overloaded"),
        (UnavailableError, 503, "Unhealthy"),
        (InferenceError, 424, "Backend"),
    ]
    for kind, status, name in kinds:
        if isinstance(error, kind):
            return status, {"error": error.message, "error_type": name}
    return error.status, {"error": error.message, "error_type": error.code}


DIALECT = Dialect(lambda path: path in (*_ASK_PATHS, *_OTHER_PATHS) or path.startswith("/models/"), explain)

_ERRORS = documented(
    NoInputsError("inputs"),
    *ASK_EXAMPLES,
    explain=explain,
    model=TeiError,
)


def router(registry: Registry, classifier: Classifier, settings: Settings) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["text embeddings inference, hugging face"])

    async def answer(model: Model, body: PredictRequest, request: Request, response: Response) -> Answer:
        if body.parameters is not None:
            VISIT.get().dialect = "huggingface"
            return await huggingface.answer(model, body.inputs, body.parameters, classifier, request)
        inputs, alone = _sequences(body.inputs)
        question = Question(
            inputs,
            reading=_reading(body),
            function=Activation.NONE if body.raw_scores else None,
        )
        results = await classifier.ask(question, model, request.receive)
        ranked = [ranked_labels(one.scores, model) for one in scored(question, model, results)]
        response.headers.update(measured(model, inputs, results))
        return ranked[0] if alone else ranked

    asks: dict[str, Any] = {
        "responses": _ERRORS,
        "dependencies": [Depends(require_json)],
        "response_model_exclude_none": True,
    }
    for path in _ASK_PATHS:

        @routes.post(path, summary="Classify as TEI does", name=path, **asks)
        async def predict(body: PredictRequest, request: Request, response: Response) -> Answer:
            return await answer(registry.get(), body, request, response)

    @routes.post("/models/{model}", summary="Classify with a model by name, as Hugging Face's clients ask", **asks)
    async def predict_with_model(model: str, body: PredictRequest, request: Request, response: Response) -> Answer:
        return await answer(registry.get(model), body, request, response)

    for path in ("/health", "/ping"):

        @routes.get(
            path,
            summary="200 while requests are answered",
            responses={503: {"model": TeiError}},
            response_class=Response,
            name=path,
        )
        async def health() -> Response:
            if not registry.ready:
                return Response('{"error":"unhealthy","error_type":"Unhealthy"}', 503, media_type="application/json")
            return Response()

    @routes.get("/info", summary="What is served", responses=_ERRORS)
    async def info() -> Info:
        return info_of(registry.get(asks=False), settings)

    return routes


def _reading(body: PredictRequest) -> Reading:
    if body.truncate is False:
        return Reading(Keep.WHOLE)
    return Reading(Keep.TAIL) if body.truncation_direction.lower() == "left" else HEAD


def _sequences(inputs: str | list[str] | list[list[str]]) -> tuple[list[TextInput], bool]:
    """Return texts and pairs, and whether there is one alone; in TEI two strings in a list are a pair."""
    if isinstance(inputs, str):
        return [inputs], True
    if inputs and all(isinstance(given, str) for given in inputs):
        return [_sequence("inputs", inputs)], True
    return [_sequence(f"inputs[{number}]", given) for number, given in enumerate(inputs)], False


def _sequence(field: str, texts: Sequence[Any]) -> TextInput:
    if len(texts) == 1:
        return str(texts[0])
    if len(texts) == 2:
        return str(texts[0]), str(texts[1])
    raise InvalidInputError(field, f"found {len(texts)} texts, expected one, or two that are a pair")
