"""What every way to ask for labels shares: deadline, priority, the engine, a client that leaves, the answer's JSON."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from starlette.types import Receive

from service.api.disconnect import DisconnectWatch
from service.api.inputs import check_inputs
from service.engine.postprocess import rank
from service.engine.queue import Priority
from service.engine.request import Classified
from service.engine.tokenization import TextInput
from service.registry import Model
from service.settings import Settings


class _LabelScore(msgspec.Struct):
    label: str
    score: float


class _Result(msgspec.Struct):
    labels: list[_LabelScore]
    truncated: bool
    tokens: int


class _Answer(msgspec.Struct):
    """`schemas.ClassifyResponse`, which describes it in the OpenAPI document, in a form that costs 1 µs to write."""

    model: str
    version: str
    variant: str
    results: list[_Result]


@dataclass(frozen=True, slots=True)
class Question:
    """A request for labels, its form checked and its texts not yet. `arrived_s` is on the clock `time.monotonic`."""

    inputs: Sequence[TextInput]
    arrived_s: float
    top_k: int | None = None
    timeout_ms: int | None = None
    priority: Priority = Priority.INTERACTIVE


class Classifier:
    """Asks a model and writes the answer; one for each app."""

    def __init__(self, settings: Settings) -> None:
        self._max_inputs = settings.max_inputs
        self._default_timeout_ms = settings.default_timeout_ms
        self._watch = DisconnectWatch()
        self._encode = msgspec.json.Encoder().encode

    def check(self, question: Question, model: Model) -> None:
        """Raise InvalidInputError when the model cannot classify these texts."""
        check_inputs(question.inputs, model.manifest, self._max_inputs)

    async def answer(self, question: Question, model: Model, receive: Receive) -> bytes:
        """Return the JSON of a ClassifyResponse for a question that was checked; raises what the batcher raises.

        Raises ClientGoneError when the client leaves meanwhile. The request's body must have been read from `receive`.
        """
        results = await self._watch.result(self.submit(question, model), receive)
        return self.encode(question, model, results)

    def submit(self, question: Question, model: Model) -> asyncio.Future[list[Classified]]:
        """Hand a question that was checked to the engine; raises what the batcher raises."""
        timeout_ms = question.timeout_ms or self._default_timeout_ms
        deadline_s = question.arrived_s + timeout_ms / 1000 if timeout_ms else None
        return model.batcher.submit(question.inputs, priority=question.priority, deadline_s=deadline_s)

    def encode(self, question: Question, model: Model, results: Iterable[Classified]) -> bytes:
        """Return the JSON of a ClassifyResponse."""
        manifest = model.manifest
        return self._encode(
            _Answer(
                manifest.name,
                manifest.version,
                model.variant.name,
                [_result(result, manifest.labels, question.top_k) for result in results],
            )
        )


def _result(classified: Classified, labels: tuple[str, ...], top_k: int | None) -> _Result:
    ranked = [_LabelScore(label, score) for label, score in rank(classified.scores, labels, top_k)]
    return _Result(ranked, classified.truncated, classified.tokens)
