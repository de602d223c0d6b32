"""Tokenizes for many requests in few calls: what comes while the thread is busy goes into its next call."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from service.engine.owner import Owner
from service.engine.queue import Priority
from service.engine.request import Request
from service.engine.tokenization import Encoding, Reading, TextInput

log = logging.getLogger(__name__)

Tokenize = Callable[[Sequence[TextInput], Reading], list[Encoding]]

# Most inputs in one call. Whoever comes during a call waits for that one at most, and neither priority can keep the
# thread from the other.
_CALL_INPUTS = {Priority.INTERACTIVE: 32, Priority.BULK: 16}


class Part(NamedTuple):
    """Some inputs of one request, in order: a large one takes several calls."""

    request: Request
    inputs: Sequence[TextInput]


class Coalescer:
    """One thread that calls `tokenize`, and the requests that wait for it.

    After each call `tokenized` gets, as a step of `owner`, the requests that are complete, those that the tokenizer
    cannot read, and the seconds that the call took.
    """

    def __init__(
        self, tokenize: Tokenize, owner: Owner, tokenized: Callable[[list[Request], list[Request], float], None]
    ) -> None:
        self._tokenize = tokenize
        self._owner = owner
        self._tokenized = tokenized
        self._pending: dict[Priority, deque[Request]] = {priority: deque() for priority in Priority}
        self._busy = False  # a call runs, or `_flush` is about to begin one
        self._calls: SimpleQueue[list[Part] | None] = SimpleQueue()
        # a daemon: one that hangs must not keep the process from ending
        self._thread = threading.Thread(target=self._work, name="limbeck-tokenize", daemon=True)
        self._thread.start()

    def add(self, request: Request) -> None:
        """Tokenize a request, together with all others of the same turn of the event loop."""
        self._pending[request.priority].append(request)
        if not self._busy:
            self._busy = True
            self._owner.soon(self._flush)

    def close(self) -> threading.Thread:
        """Let the thread end after the call that it is in, and return it."""
        self._calls.put(None)
        return self._thread

    def _flush(self) -> None:
        """Begin a call with what waits."""
        parts: list[Part] = []
        for priority, pending in self._pending.items():
            room = _CALL_INPUTS[priority]
            while room and pending:
                request = pending.popleft()
                if request.future.done():  # cancelled, or past its deadline
                    continue
                begin = len(request.encodings)
                inputs = request.inputs[begin : begin + room]
                parts.append(Part(request, inputs))
                room -= len(inputs)
                if begin + len(inputs) < len(request.inputs):
                    pending.append(request)  # its turn comes again after the others'
        self._busy = bool(parts)
        if parts:
            self._calls.put(parts)

    def _finished(self, parts: list[Part], results: list[list[Encoding] | None], took_s: float) -> None:
        complete, unreadable = [], []
        for (request, _), encodings in zip(parts, results, strict=True):
            if encodings is None:
                unreadable.append(request)
                continue
            request.encodings += encodings
            if len(request.encodings) == len(request.inputs):
                complete.append(request)
        self._flush()  # first of all: the thread has nothing to do
        self._tokenized(complete, unreadable, took_s)

    def _work(self) -> None:
        """The thread."""
        while (parts := self._calls.get()) is not None:
            began_s = time.perf_counter()
            results: list[list[Encoding] | None]
            try:
                results = self._call(parts)
            except BaseException:  # noqa: BLE001 - a panic of the extension, too; which part it was comes out below
                results = [self._call_alone(part) for part in parts]
            self._owner.soon_from_thread(self._finished, parts, results, time.perf_counter() - began_s)

    def _call(self, parts: Sequence[Part]) -> list[list[Encoding] | None]:
        if len(parts) == 1:
            return [self._tokenize(parts[0].inputs, parts[0].request.reading)]
        results: list[list[Encoding] | None] = [None] * len(parts)
        for reading in {part.request.reading for part in parts}:
            alike = [number for number, part in enumerate(parts) if part.request.reading == reading]
            encodings = iter(self._tokenize([given for number in alike for given in parts[number].inputs], reading))
            for number in alike:
                results[number] = [next(encodings) for _ in parts[number].inputs]
        return results

    def _call_alone(self, part: Part) -> list[Encoding] | None:
        try:
            return self._tokenize(part.inputs, part.request.reading)
        except BaseException:
            log.exception("tokenization failed")
            return None
