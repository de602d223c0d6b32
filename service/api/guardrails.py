"""What guardrail clients speak beside vLLM's dialect: KServe V1 `:predict`, and the detectors' API."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, ConfigDict, Field

from service.api.classify import Classifier, Question, scored
from service.api.failures import Dialect
from service.api.routes import ASK_EXAMPLES, documented, require_json
from service.api.tag import entities_of
from service.engine.request import Classified
from service.engine.tagging import Strategy
from service.errors import ServiceError
from service.model import Model
from service.registry import Registry

_CONTENTS = "/api/v1/text/contents"


class PredictV1Request(BaseModel):
    """KServe V1: texts to classify."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"instances": ["A fine film."]}]})

    instances: list[str]


class PredictV1Response(BaseModel):
    """KServe V1: of each text the score of each label, by the label's number."""

    predictions: list[dict[str, float]]


class V1Error(BaseModel):
    """What went wrong."""

    error: str


class DetectorParameters(BaseModel):
    """What a detector may be told; unknown keys are ignored."""

    threshold: float | None = Field(default=None, ge=0, le=1, description="least score; what is predicted by default")


class ContentsRequest(BaseModel):
    """Texts in which something is to be detected."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"contents": ["A fine film."], "detector_params": {"threshold": 0.5}}]}
    )

    contents: list[str]
    detector_params: DetectorParameters = DetectorParameters()


class Detection(BaseModel):
    """Something in a text, or said of all of it."""

    start: int = Field(description="first character, in Unicode code points")
    end: int = Field(description="the character after the last")
    text: str
    detection: str = Field(description="the label")
    detection_type: str = Field(description="the model's name")
    score: float
    evidences: list[Any] = []
    metadata: dict[str, Any] = {}


class DetectorError(BaseModel):
    """What went wrong."""

    code: int
    message: str


def explain_v1(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error in KServe V1's words."""
    return error.status, {"error": error.message}


def explain_detector(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return the status and body of an error in the detectors' words."""
    return error.status, {"code": error.status, "message": error.message}


V1 = Dialect(lambda path: path.startswith("/v1/models/") and path.endswith(":predict"), explain_v1)
DETECTORS = Dialect(lambda path: path == _CONTENTS, explain_detector)


def router(registry: Registry, classifier: Classifier) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["guardrails"], dependencies=[Depends(require_json)])

    @routes.post(
        "/v1/models/{model}:predict",
        summary="Classify as KServe V1 does",
        responses=documented(*ASK_EXAMPLES, explain=explain_v1, model=V1Error),
    )
    async def predict(model: str, body: PredictV1Request, request: Request) -> PredictV1Response:
        found = registry.get(model)
        question = Question(body.instances, field="instances")
        results = scored(question, found, await classifier.ask(question, found, request.receive))
        return PredictV1Response(
            predictions=[{str(number): score for number, score in enumerate(one.scores.tolist())} for one in results]
        )

    @routes.post(
        _CONTENTS,
        summary="Detect as FMS' detectors do",
        responses=documented(*ASK_EXAMPLES, explain=explain_detector, model=DetectorError),
    )
    async def detect(
        body: ContentsRequest,
        request: Request,
        detector_id: Annotated[
            str | None, Header(description="the model; the only or the default one if absent")
        ] = None,
    ) -> list[list[Detection]]:
        model = registry.get(detector_id)
        question = Question(body.contents, field="contents")
        results = await classifier.ask(question, model, request.receive, tags=model.tags)
        threshold = body.detector_params.threshold
        if model.tags:
            return await _in_texts(body.contents, model, results, 0.0 if threshold is None else threshold)
        return [
            [
                Detection(
                    start=0,
                    end=len(text),
                    text=text,
                    detection=model.manifest.labels[index],
                    detection_type=model.manifest.name,
                    score=float(one.scores[index]),
                )
                for index in _detected(model, one.scores, threshold)
            ]
            for text, one in zip(body.contents, scored(question, model, results), strict=True)
        ]

    return routes


def _detected(model: Model, scores: Any, threshold: float | None) -> list[int]:
    """Return the labels that are reported, the highest first."""
    if threshold is None:
        return model.decider.predicted(scores[None])[0]
    return [int(index) for index in (-scores).argsort(kind="stable") if scores[index] >= threshold]


async def _in_texts(
    texts: list[str], model: Model, results: list[Classified], threshold: float
) -> list[list[Detection]]:
    found = await entities_of(texts, model, results, Strategy.SIMPLE, frozenset("O"))
    return [
        [
            Detection(
                start=one.start,
                end=one.end,
                text=text[one.start : one.end],
                detection=one.entity,
                detection_type=model.manifest.name,
                score=one.score,
            )
            for one in entities
            if one.score >= threshold
        ]
        for text, entities in zip(texts, found, strict=True)
    ]
