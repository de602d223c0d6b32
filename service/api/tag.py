"""The native API of token classification: entities in texts, with their places."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.api.classify import Classifier, Question
from service.api.names import TAG_MODEL_ROUTE, TAG_ROUTE, TAG_VERSION_ROUTE
from service.api.routes import ASK_ERRORS, GivenOptions, HeaderOptions, reading_of, require_json
from service.api.schemas import Options, as_list
from service.engine.queue import Priority
from service.engine.request import Classified, input_ranges
from service.engine.tagging import Entity, Strategy
from service.model import Model
from service.registry import Registry

_FEW_TOKENS = 256

StrategyName = Literal["none", "simple", "first", "average", "max"]


class TagRequest(Options):
    """Texts to find entities in."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": ["Ada Lovelace lived in London."]},
                {"inputs": ["Ada Lovelace lived in London."], "aggregation_strategy": "first"},
            ]
        }
    )

    inputs: Annotated[list[str], BeforeValidator(as_list, json_schema_input_type=str | list[str])] = Field(
        description="texts; a single string counts as a list of one"
    )
    aggregation_strategy: StrategyName = Field(
        default="simple",
        description="how tokens become entities, as in transformers' pipeline: `none` (each token is one), `simple`, "
        "or by whole words with the tag of their `first` token, the best `average` or their surest token (`max`)",
    )
    ignore_labels: list[str] = Field(default=["O"], description="entities with these tags are left out")


class TaggedEntity(BaseModel):
    """A part of a text."""

    entity: str = Field(description="the tag, without its prefix unless tokens stay single")
    score: float
    word: str = Field(description="what the tokenizer makes of it; the text itself is between start and end")
    start: int = Field(description="first character, in Unicode code points of the text as it was sent")
    end: int = Field(description="the character after the last")


class TagResult(BaseModel):
    """The entities of one text."""

    entities: list[TaggedEntity] = Field(description="in the order of the text")
    truncated: bool = Field(description="the text was longer than the model's max_length and was cut")
    tokens: int = Field(description="tokens that the model read, specials included, in all windows together")


class TagResponse(BaseModel):
    """The answers, in the order of the inputs, and who gave them."""

    model: str
    version: str
    variant: str
    results: list[TagResult]


def as_json(found: Entity) -> dict[str, Any]:
    """Return an entity as our own API writes it."""
    return {"entity": found.entity, "score": found.score, "word": found.word, "start": found.start, "end": found.end}


async def entities_of(
    texts: list[str], model: Model, results: Sequence[Classified], strategy: Strategy, ignored: frozenset[str]
) -> list[list[Entity]]:
    """Return the entities of each text; of many tokens in a thread, since a token takes 2 to 12 µs."""

    def found() -> list[list[Entity]]:
        return [
            model.tagger.entities(text, [one[:2] for one in results[first:end]], strategy, ignored)
            for text, (first, end) in zip(texts, input_ranges(results), strict=True)
        ]

    few = sum(one.encoding.tokens for one in results) <= _FEW_TOKENS
    return found() if few else await asyncio.to_thread(found)


def router(registry: Registry, classifier: Classifier) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["tag"], dependencies=[Depends(require_json)], responses=ASK_ERRORS)

    async def answer(model: Model, body: TagRequest, options: HeaderOptions, request: Request) -> TagResponse:
        question = Question(
            body.inputs,
            timeout_ms=body.timeout_ms or options.timeout_ms,
            priority=Priority(body.priority or options.priority or Priority.INTERACTIVE),
            reading=reading_of(body, model),
        )
        results = await classifier.ask(question, model, request.receive, tags=True)
        strategy, ignored = Strategy(body.aggregation_strategy), frozenset(body.ignore_labels)
        found = await entities_of(body.inputs, model, results, strategy, ignored)
        return TagResponse(
            model=model.manifest.name,
            version=model.manifest.version,
            variant=model.variant.name,
            results=[
                TagResult(
                    entities=[TaggedEntity(**as_json(one)) for one in entities],
                    truncated=results[first].encoding.truncated,
                    tokens=sum(window.encoding.tokens for window in results[first:end]),
                )
                for entities, (first, end) in zip(found, input_ranges(results), strict=True)
            ],
        )

    @routes.post(TAG_ROUTE, summary="Tag with the only or the default model")
    async def tag(body: TagRequest, options: GivenOptions, request: Request) -> TagResponse:
        return await answer(registry.get(), body, options, request)

    @routes.post(TAG_MODEL_ROUTE, summary="Tag with a model")
    async def tag_with_model(model: str, body: TagRequest, options: GivenOptions, request: Request) -> TagResponse:
        return await answer(registry.get(model), body, options, request)

    @routes.post(TAG_VERSION_ROUTE, summary="Tag with a pinned version")
    async def tag_with_version(
        model: str, version: str, body: TagRequest, options: GivenOptions, request: Request
    ) -> TagResponse:
        return await answer(registry.get(model, version), body, options, request)

    return routes
