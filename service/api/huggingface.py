"""The dialect of `huggingface_hub.InferenceClient`; its routes are `service.api.tei`'s."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field

from bundle.manifest import Activation
from service.api.classify import Classifier, Question, scored
from service.api.routes import ranked_labels
from service.api.schemas import FunctionName, LabelScore
from service.api.tag import StrategyName, entities_of
from service.engine.tagging import Entity, Strategy
from service.engine.tokenization import HEAD, Keep, Reading
from service.errors import InvalidInputError
from service.model import Model


class Parameters(BaseModel):
    """How the client wants its answer; unknown keys are ignored."""

    function_to_apply: FunctionName | None = Field(
        default=None, description="text classification: what makes scores of logits; the model's own by default"
    )
    top_k: int | None = Field(default=None, ge=1, description="text classification: only so many of the highest labels")
    aggregation_strategy: StrategyName = Field(
        default="none", description="token classification: how tokens become entities"
    )
    ignore_labels: list[str] = Field(default=["O"], description="token classification: tags that are left out")
    stride: int | None = Field(
        default=None,
        ge=0,
        description="token classification: long texts are read in windows that share so many tokens, not cut",
    )
    candidate_labels: Any = Field(default=None, description="zero-shot classification, which no model here does")


class TokenEntity(BaseModel):
    """A part of a text: `entity_group` where tokens were joined, else `entity` and the token's `index`."""

    entity: str | None = None
    entity_group: str | None = None
    index: int | None = None
    score: float
    word: str
    start: int
    end: int


async def answer(
    model: Model, inputs: str | Sequence[Any], parameters: Parameters, classifier: Classifier, request: Request
) -> list[list[LabelScore]] | list[TokenEntity] | list[list[TokenEntity]]:
    """Return what the client parses: for one text of a model of labels a list in a list, else a list for each text."""
    if parameters.candidate_labels is not None:
        raise InvalidInputError(
            "parameters.candidate_labels",
            f"found candidate labels, but {model.manifest.name} is no zero-shot model; it knows the labels "
            + ", ".join(model.manifest.labels[:20]),
        )
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"inputs[{number}]", "found a list, expected a text")
    if model.tags:
        return await _tagged(model, texts, isinstance(inputs, str), parameters, classifier, request)
    function = None if parameters.function_to_apply is None else Activation(parameters.function_to_apply)
    question = Question(texts, function=function)
    results = await classifier.ask(question, model, request.receive)
    return [ranked_labels(one.scores, model, parameters.top_k) for one in scored(question, model, results)]


async def _tagged(
    model: Model, texts: list[str], alone: bool, parameters: Parameters, classifier: Classifier, request: Request
) -> list[TokenEntity] | list[list[TokenEntity]]:
    reading = HEAD if parameters.stride is None else Reading(Keep.WINDOWS, parameters.stride)
    question = Question(texts, reading=reading)
    results = await classifier.ask(question, model, request.receive, tags=True)
    strategy = Strategy(parameters.aggregation_strategy)
    of_texts = await entities_of(texts, model, results, strategy, frozenset(parameters.ignore_labels))
    found = [[_entity(one, strategy) for one in entities] for entities in of_texts]
    return found[0] if alone else found


def _entity(found: Entity, strategy: Strategy) -> TokenEntity:
    entity = TokenEntity(score=found.score, word=found.word, start=found.start, end=found.end)
    if strategy is Strategy.NONE:
        entity.entity, entity.index = found.entity, found.index
    else:
        entity.entity_group = found.entity
    return entity
