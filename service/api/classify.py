"""What every way to ask a model shares: deadline, priority, the engine, a client that leaves; and the native JSON."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
import numpy as np
from starlette.types import Receive

from bundle.manifest import Activation
from service.api.disconnect import DisconnectWatch
from service.api.inputs import Bounds, check_inputs, check_task, check_windows
from service.engine.postprocess import FloatArray, activate, rank
from service.engine.queue import Priority
from service.engine.request import Classified, input_ranges
from service.engine.tokenization import HEAD, Keep, Reading, TextInput
from service.model import Model
from service.settings import Settings
from service.visits import VISIT, Visit


class Aggregate(StrEnum):
    """How the scores of a text's windows become one."""

    MEAN = "mean"
    MAX = "max"


_COMBINE: dict[Aggregate, Callable[[FloatArray], Any]] = {
    Aggregate.MEAN: lambda scores: scores.mean(axis=0),
    Aggregate.MAX: lambda scores: scores.max(axis=0),
}


class _LabelScore(msgspec.Struct):
    label: str
    score: float


class _Result(msgspec.Struct):
    labels: list[_LabelScore]
    truncated: bool
    tokens: int
    predicted: list[str] | msgspec.UnsetType = msgspec.UNSET
    windows: int | msgspec.UnsetType = msgspec.UNSET
    stride: int | msgspec.UnsetType = msgspec.UNSET


class _Answer(msgspec.Struct):
    """`schemas.ClassifyResponse`, which describes it in the OpenAPI document, in a form that costs 1 µs to write."""

    model: str
    version: str
    variant: str
    results: list[_Result]


@dataclass(frozen=True, slots=True)
class Question:
    """A request to a model, its form checked and its texts not yet.

    `function` is None for the bundle's own activation; Activation.NONE gives logits. `aggregate` is what becomes of the
    scores of windows. With `variants` all inputs but the first are made from that one, to learn about it: they are
    no texts of the client's, which may be logged, and no result is counted as a prediction.
    """

    inputs: Sequence[TextInput]
    top_k: int | None = None
    timeout_ms: int | None = None
    priority: Priority = Priority.INTERACTIVE
    reading: Reading = HEAD
    function: Activation | None = None
    aggregate: Aggregate = Aggregate.MEAN
    field: str = "inputs"  # of the request, that holds the texts
    variants: bool = False


class Scored(NamedTuple):
    """The result for one input: scores (C,) float32 in the order of the bundle's labels, and what was read of it."""

    scores: FloatArray
    tokens: int
    truncated: bool
    windows: int = 1


class Classifier:
    """Asks a model and writes the answer; one for each app."""

    def __init__(self, settings: Settings) -> None:
        self.bounds = Bounds(settings.max_inputs, settings.max_text_chars)
        self._default_timeout_ms = settings.default_timeout_ms
        self._watch = DisconnectWatch()
        self._encode = msgspec.json.Encoder().encode

    def check(self, question: Question, model: Model, *, tags: bool = False) -> None:
        """Raise InvalidInputError when the model cannot read these texts, or not in this way, or for another purpose.

        `tags` says that tags are asked for, not labels.
        """
        check_task(model, tags=tags)
        check_inputs(question.inputs, model.manifest, self.bounds, question.field)
        if question.reading.keep is Keep.WINDOWS:
            check_windows(question.reading, model)

    async def ask(self, question: Question, model: Model, receive: Receive, *, tags: bool = False) -> list[Classified]:
        """Check a question and return the engine's results, one for each input or window; raises what it raises.

        Raises ClientGoneError when the client leaves meanwhile. The request's body must have been read from `receive`.
        """
        self.check(question, model, tags=tags)
        return await self.run(question, model, receive)

    async def run(self, question: Question, model: Model, receive: Receive) -> list[Classified]:
        """Do what `ask` does with a question that was checked."""
        visit = VISIT.get()
        results = await self._watch.result(self.submit(question, model, visit), receive)
        visit.take(results)
        return results

    def submit(self, question: Question, model: Model, visit: Visit) -> asyncio.Future[list[Classified]]:
        """Hand a question that was checked to the engine.

        Raises RateLimitedError when the caller's quota is used up, and what the batcher raises.
        """
        if visit.caller is not None:
            visit.caller.quota.check(time.monotonic())
        if visit.texts is not None:
            visit.texts = question.inputs[:1] if question.variants else question.inputs
        timeout_ms = question.timeout_ms or self._default_timeout_ms
        deadline_s = visit.arrived_s + timeout_ms / 1000 if timeout_ms else None
        future = model.batcher.submit(
            question.inputs,
            priority=question.priority,
            deadline_s=deadline_s,
            reading=question.reading,
            observed=not question.variants,
        )
        if visit.caller is not None:
            visit.caller.quota.take_request()
        if visit.trial is not None:
            visit.asked_s = time.monotonic()
            visit.trial.asked(model, question.inputs, question.reading, future)
        return future

    def encode(self, question: Question, model: Model, results: Sequence[Classified]) -> bytes:
        """Return the JSON of a ClassifyResponse."""
        manifest = model.manifest
        found = [_result(one, model, question) for one in scored(question, model, results)]
        return self._encode(_Answer(manifest.name, manifest.version, model.variant.name, found))


def scored(question: Question, model: Model, results: Sequence[Classified]) -> list[Scored]:
    """Return the result for each input of a question, under its function, windows put together."""
    if question.reading.keep is not Keep.WINDOWS and question.function is None:
        return [Scored(one.output[0], len(one.encoding.ids), one.encoding.truncated) for one in results]
    found = []
    for first, end in input_ranges(results):
        windows = results[first:end]
        scores = np.stack([_under(question.function, window.output, model) for window in windows])
        combined = scores[0] if len(scores) == 1 else _COMBINE[question.aggregate](scores)
        tokens = sum(window.encoding.tokens for window in windows)
        found.append(Scored(combined, tokens, windows[0].encoding.truncated, len(windows)))
    return found


def _under(function: Activation | None, output: FloatArray, model: Model) -> FloatArray:
    """Return the scores (C,) of one output (2, C) under a function; logits are not divided by the temperature."""
    if function is None or function is Activation.NONE:
        kept: FloatArray = output[0 if function is None else 1]
        return kept
    scores: FloatArray = activate(output[1:], function, model.manifest.temperature)[0]
    return scores


def _result(found: Scored, model: Model, question: Question) -> _Result:
    ranked = [_LabelScore(label, score) for label, score in rank(found.scores, model.manifest.labels, question.top_k)]
    result = _Result(ranked, found.truncated, found.tokens)
    if model.decider.multi_label and question.function is None:
        chosen = model.decider.predicted(found.scores[None])[0]
        result.predicted = [model.manifest.labels[index] for index in chosen]
    if question.reading.keep is Keep.WINDOWS:
        result.windows, result.stride = found.windows, question.reading.stride
    return result
