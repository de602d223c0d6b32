"""Asks a candidate what the stable version has answered already, and compares; nothing of it reaches a client.

A shadow begins when the client's answer is on its way, goes after everything else that the candidate is asked, and is
left out when either model has more to do than a little: it is the first thing that an overloaded service sheds.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from service.engine.queue import Priority
from service.engine.request import Classified, input_ranges
from service.engine.tagging import Strategy
from service.engine.tokenization import Reading, TextInput
from service.errors import InferenceError, ServiceError

if TYPE_CHECKING:
    from service.model import Model

log = logging.getLogger(__name__)

_MOST_WAITING = 8  # entries of either model, for a shadow to be begun
_MOST_AT_WORK = 32  # shadows of one model in one process
_PATIENCE_S = 10.0

_Answers = asyncio.Future[list[Classified]]


class Tally(Protocol):
    """What counts shadows."""

    def compared(self, texts: int, differing: int) -> None:
        """A shadow was answered: so many texts, and so many of them otherwise."""

    def failed(self) -> None:
        """The candidate failed."""

    def shed(self) -> None:
        """A shadow was left out."""


class Shadows:
    """The shadows of one trial; use it on the event loop."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._at_work = 0

    def follow(
        self, stable: "Model", candidate: "Model", inputs: Sequence[TextInput], reading: Reading, answer: _Answers
    ) -> None:
        """Ask the candidate, too, once the stable version has answered, if it does."""
        answer.add_done_callback(partial(self._go_on, stable, candidate, inputs, reading))

    def _go_on(
        self, stable: "Model", candidate: "Model", inputs: Sequence[TextInput], reading: Reading, answer: _Answers
    ) -> None:
        if not answer.cancelled() and answer.exception() is None:
            # a turn later: whoever writes the client's answer was told of it before
            answer.get_loop().call_soon(self._ask, stable, candidate, inputs, reading, answer.result())

    def _ask(
        self,
        stable: "Model",
        candidate: "Model",
        inputs: Sequence[TextInput],
        reading: Reading,
        answers: list[Classified],
    ) -> None:
        if candidate.draining or not stable.ready or self._at_work >= _MOST_AT_WORK:
            self._tally.shed()
            return
        if not candidate.ready:
            self._tally.failed()
            return
        if max(stable.batcher.waiting_entries, candidate.batcher.waiting_entries) > _MOST_WAITING:
            self._tally.shed()
            return
        try:
            shadow = candidate.batcher.submit(
                inputs, priority=Priority.BULK, deadline_s=time.monotonic() + _PATIENCE_S, reading=reading
            )
        except ServiceError:
            self._tally.shed()
            return
        self._at_work += 1
        for model in (stable, candidate):  # neither is closed meanwhile
            model.visitors += 1
        shadow.add_done_callback(partial(self._compare, stable, candidate, inputs, answers))

    def _compare(
        self,
        stable: "Model",
        candidate: "Model",
        inputs: Sequence[TextInput],
        answers: list[Classified],
        shadow: _Answers,
    ) -> None:
        error = None if shadow.cancelled() else shadow.exception()
        if error is not None or shadow.cancelled():
            if isinstance(error, InferenceError):
                self._tally.failed()
            else:  # it waited too long, or the candidate reads less than the stable version does
                self._tally.shed()
            self._end(stable, candidate)
            return
        count = partial(disagreements, inputs, stable, answers, candidate, shadow.result())
        if stable.tags:  # milliseconds, not to be taken from the event loop
            found = shadow.get_loop().run_in_executor(None, count)
            found.add_done_callback(partial(self._counted, stable, candidate, len(inputs)))
            return
        try:
            self._tally.compared(len(inputs), count())
        finally:
            self._end(stable, candidate)

    def _counted(self, stable: "Model", candidate: "Model", texts: int, found: asyncio.Future[int]) -> None:
        self._end(stable, candidate)
        if not found.cancelled():
            self._tally.compared(texts, found.result())

    def _end(self, *models: "Model") -> None:
        self._at_work -= 1
        for model in models:
            model.visitors -= 1


def disagreements(
    inputs: Sequence[TextInput],
    one: "Model",
    of_one: Sequence[Classified],
    other: "Model",
    of_other: Sequence[Classified],
) -> int:
    """Return how many inputs two models decide differently: the label, the set of labels, or the entities."""
    found = zip(_decisions(inputs, one, of_one), _decisions(inputs, other, of_other), strict=True)
    return sum(decided != otherwise for decided, otherwise in found)


def _decisions(inputs: Sequence[TextInput], model: "Model", results: Sequence[Classified]) -> list[frozenset[object]]:
    """Return for each input its labels, or its entities with their places; the scores of windows are averaged."""
    ranges = list(input_ranges(results))
    if model.tags:
        entities = [
            model.tagger.entities(str(text), [one[:2] for one in results[first:end]], Strategy.SIMPLE, frozenset("O"))
            for text, (first, end) in zip(inputs, ranges, strict=True)
        ]
        return [frozenset((one.entity, one.start, one.end) for one in of_text) for of_text in entities]
    scores = np.stack([np.mean([one.output[0] for one in results[first:end]], axis=0) for first, end in ranges])
    return [frozenset(model.manifest.labels[index] for index in given) for given in model.decider.predicted(scores)]
