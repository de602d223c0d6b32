"""Explains an answer: what a label's score owes to each word of a text, found by leaving the words out one by one.

The text and its variants are one request to the model's batcher, so it is the graph that serves which is explained.
They are bulk: whoever classifies meanwhile goes first.
"""

import asyncio
from typing import Any, Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from service.api.classify import Classifier, Question
from service.api.inputs import check_input, check_task
from service.api.names import EXPLAIN_MODEL_ROUTE, EXPLAIN_ROUTE, EXPLAIN_VERSION_ROUTE
from service.api.routes import ASK_EXAMPLES, GivenOptions, HeaderOptions, documented, require_json
from service.api.schemas import Input, TimeoutMs
from service.engine.queue import Priority
from service.engine.tokenization import Reach, TextInput
from service.errors import ExplainBusyError, InvalidInputError
from service.model import Model
from service.occlusion import Span, effects, grouped, parts_of, variants, words_of
from service.registry import Registry
from service.settings import Settings
from service.visits import VISIT

_SHARE = 2  # of a queue: all explanations together fill at most the half of one
_LABELS_SHOWN = 20
_RETRY_AFTER_S = 1
_FIELDS: tuple[Literal["text", "text_pair"], ...] = ("text", "text_pair")


class ExplainRequest(BaseModel):
    """One text, or one pair, whose answer is to be explained."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"inputs": "A fine film."},
                {"inputs": "A fine film.", "label": "negative", "timeout_ms": 2000},
                {"inputs": {"text": "A man sleeps.", "text_pair": "Nobody is awake."}},
            ]
        },
    )

    inputs: Input = Field(description="a text or, for models of text pairs, an object")
    label: str | None = Field(default=None, description="whose score is explained; the highest by default")
    timeout_ms: TimeoutMs | None = Field(
        default=None, description="milliseconds from the request's arrival after which its answer is of no use"
    )


class ExplainedWord(BaseModel):
    """A word and what it does to the score; in texts of very many words, several neighbors together."""

    text: str
    start: int = Field(description="first character, in Unicode code points of the text as it was sent")
    end: int = Field(description="the character after the last")
    field: Literal["text", "text_pair"] = Field(description="which text of a pair; `text` where there is one")
    effect: float = Field(description="score minus the score without it: above 0 it speaks for the label")


class ExplainResponse(BaseModel):
    """The label's score, who gave it, and the words in the order of the text."""

    model: str
    version: str
    variant: str
    label: str
    score: float = Field(description="as classify gives it")
    method: Literal["occlusion"] = "occlusion"
    words: list[ExplainedWord]
    tokens: int = Field(description="tokens of the whole text that the model read, specials included")
    truncated: bool = Field(description="the text was longer than the model's max_length and was cut")
    words_left_out: int = Field(description="words that the model did not read, because they were cut off")


class _Prepared(NamedTuple):
    spans: list[Span]
    left_out: int
    inputs: list[TextInput]


class Explainer:
    """Explains, within bounds; one for each app."""

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        self._classifier = classifier
        self._settings = settings
        self._running = 0

    async def explain(
        self, model: Model, body: ExplainRequest, options: HeaderOptions, request: Request
    ) -> ExplainResponse:
        """Answer a request; raises InvalidInputError, ExplainBusyError, and what `Classifier.run` raises."""
        VISIT.get().trial = None  # versions are compared and judged on what clients ask, not on explanations
        given = body.inputs if isinstance(body.inputs, str) else (body.inputs.text, body.inputs.text_pair)
        check_task(model, tags=False)
        check_input(given, model.manifest, self._classifier.bounds, "inputs")
        _check_label(body.label, model)
        if self._running >= self._settings.explain_concurrency:
            raise ExplainBusyError(
                f"{self._running} of {self._settings.explain_concurrency} explanations are under way",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._running += 1
        try:
            prepared = await asyncio.to_thread(self._prepare, given, model)
            question = Question(
                prepared.inputs,
                timeout_ms=body.timeout_ms or options.timeout_ms,
                priority=Priority.BULK,
                variants=True,
            )
            results = await self._classifier.run(question, model, request.receive)
        finally:
            self._running -= 1
        scores = np.stack([one.output[0] for one in results])  # (1 + N, C)
        labels = model.manifest.labels
        label = int(scores[0].argmax()) if body.label is None else labels.index(body.label)
        texts = parts_of(given)
        return ExplainResponse(
            model=model.name,
            version=model.version,
            variant=model.variant.name,
            label=labels[label],
            score=float(scores[0, label]),
            words=[
                ExplainedWord(text=texts[part][start:end], start=start, end=end, field=_FIELDS[part], effect=effect)
                for (part, start, end), effect in zip(prepared.spans, effects(scores, label), strict=True)
            ],
            tokens=results[0].encoding.tokens,
            truncated=results[0].encoding.truncated,
            words_left_out=prepared.left_out,
        )

    def _prepare(self, given: TextInput, model: Model) -> _Prepared:
        """Return what is asked of the model; for a thread, since a text may have a megabyte."""
        reach = model.tokenizer.reach(given)
        words, left_out = words_of(given, reach)
        spans = grouped(words, self._most_words(reach))
        return _Prepared(spans, left_out, [given, *variants(given, spans, reach)])

    def _most_words(self, reach: Reach) -> int:
        """Return how many variants there may be.

        With the text itself they leave room in the queue for others, and together they have no more characters than a
        request's body may have bytes: what classifying may cost, too.
        """
        settings = self._settings
        places = min(settings.queue_capacity, settings.queue_capacity_tokens // max(1, reach.tokens))
        room = places // (_SHARE * settings.explain_concurrency) - 1
        return max(2, min(settings.max_explain_words, room, settings.max_body_bytes // max(1, sum(reach.ends))))


def _check_label(label: str | None, model: Model) -> None:
    labels = model.manifest.labels
    if label is not None and label not in labels:
        shown = ", ".join(labels[:_LABELS_SHOWN]) + (", …" if len(labels) > _LABELS_SHOWN else "")
        raise InvalidInputError("label", f"found {label[:64]!r}, expected one of {shown}")


def router(registry: Registry, classifier: Classifier, settings: Settings) -> APIRouter:
    """Return the routes."""
    explains: dict[str, Any] = {
        "responses": documented(*ASK_EXAMPLES, ExplainBusyError("1 of 1 explanations are under way", retry_after_s=1))
    }
    routes = APIRouter(tags=["explain"], dependencies=[Depends(require_json)])
    explainer = Explainer(classifier, settings)

    @routes.post(EXPLAIN_ROUTE, summary="Explain an answer of the only or the default model", **explains)
    async def explain(body: ExplainRequest, options: GivenOptions, request: Request) -> ExplainResponse:
        return await explainer.explain(registry.get(), body, options, request)

    @routes.post(EXPLAIN_MODEL_ROUTE, summary="Explain an answer of a model", **explains)
    async def explain_with_model(
        model: str, body: ExplainRequest, options: GivenOptions, request: Request
    ) -> ExplainResponse:
        return await explainer.explain(registry.get(model), body, options, request)

    @routes.post(EXPLAIN_VERSION_ROUTE, summary="Explain an answer of a pinned version", **explains)
    async def explain_with_version(
        model: str, version: str, body: ExplainRequest, options: GivenOptions, request: Request
    ) -> ExplainResponse:
        return await explainer.explain(registry.get(model, version), body, options, request)

    return routes
