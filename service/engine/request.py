"""What one call of `Batcher.submit` is made of while it waits for its answer."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.queue import Entry, Priority
from service.engine.tokenization import HEAD, Encoding, Keep, Reading, TextInput
from service.errors import InvalidInputError, ServiceError


class Classified(NamedTuple):
    """The result for one input, or for one window of it."""

    output: NDArray[np.float32]  # what the model's function gave for its row
    encoding: Encoding
    queue_s: float  # between tokenization and its batch
    inference_s: float  # of its batch


def input_ranges(results: Sequence[Classified]) -> Iterator[tuple[int, int]]:
    """Yield where the results of each input begin and end."""
    first = 0
    while first < len(results):
        end = first + 1 + len(results[first].encoding.windows)
        yield first, end
        first = end


_PENDING = Classified(np.empty(0, dtype=np.float32), Encoding([], [], truncated=False), 0.0, 0.0)


class Request:
    """Inputs that are answered together, by a result for each in order or by one error.

    An input that is read in windows has a result for each window. `future` is what the caller awaits; it may be
    cancelled. `deadline_s` is on the clock of `time.monotonic`. `observed` says whether its results are predictions,
    which are counted.
    """

    __slots__ = (
        "deadline_s",
        "encodings",
        "future",
        "inputs",
        "missing",
        "observed",
        "priority",
        "reading",
        "results",
        "timer",
        "works",
    )

    def __init__(
        self,
        future: asyncio.Future[list[Classified]],
        inputs: Sequence[TextInput],
        priority: Priority,
        deadline_s: float | None,
        reading: Reading = HEAD,
        *,
        observed: bool = True,
    ) -> None:
        self.reading = reading
        self.observed = observed
        self.future = future
        self.inputs = inputs
        self.priority = priority
        self.deadline_s = deadline_s
        self.timer: asyncio.TimerHandle | None = None
        self.encodings: list[Encoding] = []  # of the first inputs, until tokenization is over
        self.works: list[Work] = []  # empty until then
        self.results: list[Classified] = []
        self.missing = len(inputs)

    def too_long(self) -> InvalidInputError | None:
        """Return what is wrong with inputs that are to be read whole and cannot be."""
        if self.reading.keep is not Keep.WHOLE:
            return None
        for number, encoding in enumerate(self.encodings):
            if encoding.truncated:
                return InvalidInputError(
                    f"inputs[{number}]", f"found {encoding.whole} tokens, expected at most {len(encoding.ids)}"
                )
        return None

    def make_works(self) -> list["Work"]:
        """Return the entries of a request whose inputs are all tokenized, one for each input or window."""
        pieces = self.encodings
        if self.reading.keep is Keep.WINDOWS:
            pieces = [piece for encoding in pieces for piece in (encoding, *encoding.windows)]
        self.works = [Work(self, row, piece) for row, piece in enumerate(pieces)]
        self.missing = len(pieces)
        self.results = [_PENDING] * self.missing
        return self.works

    def deliver(self, work: "Work", output: NDArray[np.float32], queue_s: float, inference_s: float) -> None:
        """Take the output of one entry; the last one answers the request."""
        self.results[work.row] = Classified(output, work.encoding, queue_s, inference_s)
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.results)

    def fail(self, error: ServiceError) -> None:
        """Answer with an error, unless there is an answer already."""
        if not self.future.done():
            self.future.set_exception(error)


class Work(Entry):
    """One input, or one window of it, in the queue."""

    __slots__ = ("encoding", "request", "row")

    def __init__(self, request: Request, row: int, encoding: Encoding) -> None:
        super().__init__(len(encoding.ids), request.priority, request.deadline_s)
        self.request = request
        self.row = row
        self.encoding = encoding
