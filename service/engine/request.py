"""What one call of `Batcher.submit` is made of while it waits for its answer."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.queue import Entry, Priority
from service.engine.tokenization import Encoding, TextInput
from service.errors import ServiceError


class Classified(NamedTuple):
    """The result for one input."""

    scores: NDArray[np.float32]  # (C,)
    tokens: int
    truncated: bool


_PENDING = Classified(np.empty(0, dtype=np.float32), 0, truncated=False)


class Request:
    """Inputs that are answered together, by a result for each in order or by one error.

    `future` is what the caller awaits; it may be cancelled. `deadline_s` is on the clock of `time.monotonic`.
    """

    __slots__ = ("deadline_s", "encodings", "future", "inputs", "missing", "priority", "results", "timer", "works")

    def __init__(
        self,
        future: asyncio.Future[list[Classified]],
        inputs: Sequence[TextInput],
        priority: Priority,
        deadline_s: float | None,
    ) -> None:
        self.future = future
        self.inputs = inputs
        self.priority = priority
        self.deadline_s = deadline_s
        self.timer: asyncio.TimerHandle | None = None
        self.encodings: list[Encoding] = []  # of the first inputs, until tokenization is over
        self.works: list[Work] = []  # empty until then
        self.results = [_PENDING] * len(inputs)
        self.missing = len(inputs)

    def make_works(self) -> list["Work"]:
        """Return the entries of a request whose inputs are all tokenized."""
        self.works = [Work(self, row, encoding) for row, encoding in enumerate(self.encodings)]
        return self.works

    def deliver(self, work: "Work", scores: NDArray[np.float32]) -> None:
        """Take the scores (C,) of one entry; the last one answers the request."""
        encoding = work.encoding
        self.results[work.row] = Classified(scores, len(encoding.ids), encoding.truncated)
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.results)

    def fail(self, error: ServiceError) -> None:
        """Answer with an error, unless there is an answer already."""
        if not self.future.done():
            self.future.set_exception(error)


class Work(Entry):
    """One input in the queue."""

    __slots__ = ("encoding", "request", "row")

    def __init__(self, request: Request, row: int, encoding: Encoding) -> None:
        super().__init__(len(encoding.ids), request.priority, request.deadline_s)
        self.request = request
        self.row = row
        self.encoding = encoding
