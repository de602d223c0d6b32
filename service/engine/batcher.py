"""Owns the queue: admits requests, forms a batch whenever an inference slot is free, resolves every entry.

One asyncio task, the owner, takes batches from the queue; inference and tokenization run in thread pools. There is no
wait timer: a batch forms when it can run, so what waits meanwhile is what the next batch is made of.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.engine.queue import BatchQueue, Entry, Refusal
from service.engine.tokenization import Encoding, TextInput
from service.errors import (
    DrainingError,
    InferenceError,
    InvalidInputError,
    NotReadyError,
    QueueFullError,
    ServiceError,
)
from service.metrics import EngineMetrics

log = logging.getLogger(__name__)

Tokenize = Callable[[Sequence[TextInput]], list[Encoding]]
Infer = Callable[[Sequence[Encoding]], NDArray[np.float32]]

_NEWEST_SHARE = 0.2  # of the latest batch in the moving average of throughput


@dataclass(frozen=True, slots=True)
class Classified:
    """The result for one input."""

    scores: NDArray[np.float32]  # (C,)
    tokens: int
    truncated: bool


class _Request:
    """The entries of one call of `classify`, and the future that its caller awaits."""

    def __init__(self, encodings: Sequence[Encoding]) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.admitted_s = time.perf_counter()
        self.scores: list[NDArray[np.float32] | None] = [None] * len(encodings)
        self.missing = len(encodings)
        self.entries = [Entry(_Place(self, row, encoding), encoding.tokens) for row, encoding in enumerate(encodings)]

    def deliver(self, row: int, scores: NDArray[np.float32]) -> None:
        self.scores[row] = scores
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: ServiceError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Place:
    request: _Request
    row: int
    encoding: Encoding


class Batcher:
    """Classifies for one model. Create and use it on one event loop.

    `tokenize` and `infer` are called in threads, `infer` up to `sessions` times at once; it takes the encodings of
    one batch and returns scores (B, C) float32.
    """

    def __init__(
        self, queue: BatchQueue[_Place], tokenize: Tokenize, infer: Infer, *, sessions: int, metrics: EngineMetrics
    ) -> None:
        self._queue = queue
        self._tokenize = tokenize
        self._infer = infer
        self._sessions = sessions
        self._metrics = metrics
        self._infer_pool = ThreadPoolExecutor(sessions, thread_name_prefix="limbeck-infer")
        self._tokenize_pool = ThreadPoolExecutor(sessions, thread_name_prefix="limbeck-tokenize")
        self._owner: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Task[None]] = set()  # never more than `sessions`
        self._requests: set[_Request] = set()  # admitted, not yet answered
        self._unanswered = 0  # requests inside `classify`, those in tokenization included
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake = asyncio.Event()
        self._closing = False
        self._tokens_per_s: float | None = None  # of one slot, without padding
        metrics.watch_queue(lambda: queue.waiting_entries)

    def start(self) -> Self:
        """Start the owner task; needs a running event loop."""
        self._owner = asyncio.create_task(self._own(), name="limbeck-batcher")
        self._owner.add_done_callback(self._owner_ended)
        return self

    @property
    def healthy(self) -> bool:
        """Whether the owner task lives; false the moment it ends, for whatever reason."""
        return self._owner is not None and not self._owner.done()

    async def classify(self, inputs: Sequence[TextInput]) -> list[Classified]:
        """Return a result for each input, in order, or raise one ServiceError for all of them.

        Raises QueueFullError, DrainingError, NotReadyError, InvalidInputError or InferenceError. Cancelling the
        call drops those of its entries that have not run.
        """
        if self._closing:
            raise DrainingError("the service is shutting down")
        self._unanswered += 1
        self._idle.clear()
        try:
            return await self._classify(inputs)
        finally:
            self._unanswered -= 1
            if not self._unanswered:
                self._idle.set()

    async def close(self, timeout_s: float) -> None:
        """Refuse new requests, finish what was accepted within `timeout_s` seconds, fail the rest."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d requests were not finished after %s s; they get 503", self._unanswered, timeout_s)
        tasks = [*self._batches, *([self._owner] if self._owner else [])]
        for task in tasks:
            task.cancel()
        self._fail_all(lambda: DrainingError("the service shut down before this request could be run"))
        await asyncio.gather(*tasks, return_exceptions=True)
        # A call inside ONNX Runtime cannot be interrupted; its thread ends with it and its result is dropped.
        self._infer_pool.shutdown(wait=False, cancel_futures=True)
        self._tokenize_pool.shutdown(wait=False, cancel_futures=True)

    async def _classify(self, inputs: Sequence[TextInput]) -> list[Classified]:
        encodings = await self._tokenize_reserved(inputs)
        request = _Request(encodings)
        self._refuse(self._queue.admit(request.entries), sum(encoding.tokens for encoding in encodings), "tokens")
        if not self.healthy:  # it may have ended during tokenization; nobody would take these entries
            self._queue.drop(request.entries)
            raise self._not_healthy()
        self._metrics.inputs.inc(len(encodings))
        self._metrics.inputs_truncated.inc(sum(encoding.truncated for encoding in encodings))
        self._requests.add(request)
        self._wake.set()
        try:
            await request.future
        finally:  # after a failure or a cancellation nobody wants the others
            self._requests.discard(request)
            self._queue.drop(request.entries)
        return [
            Classified(scores, encoding.tokens, encoding.truncated)
            for scores, encoding in zip(request.scores, encodings, strict=True)
            if scores is not None  # always: the future has a result only when none is missing
        ]

    async def _tokenize_reserved(self, inputs: Sequence[TextInput]) -> list[Encoding]:
        """Tokenise off the event loop; the places are reserved on return, and given back if it raises."""
        if not self.healthy:
            raise self._not_healthy()
        self._refuse(self._queue.reserve(len(inputs)), len(inputs), "entries")
        began_s = time.perf_counter()
        try:
            encodings = await asyncio.get_running_loop().run_in_executor(self._tokenize_pool, self._tokenize, inputs)
        except BaseException as error:
            self._queue.release(len(inputs))
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                raise  # the caller is gone
            if self._closing and isinstance(error, asyncio.CancelledError | RuntimeError):  # the pool was shut down
                raise DrainingError("the service shut down before this request could be run") from error
            log.exception("tokenization failed")
            raise InferenceError("tokenization failed; the service's log has the details") from error
        self._metrics.tokenization_s.observe(time.perf_counter() - began_s)
        return encodings

    async def _own(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while len(self._batches) < self._sessions and (batch := self._queue.next_batch()):
                task = asyncio.create_task(self._run(batch))
                self._batches.add(task)
                task.add_done_callback(self._slot_freed)

    def _slot_freed(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._wake.set()

    async def _run(self, batch: list[Entry[_Place]]) -> None:
        """Run one batch and resolve each of its entries, on every path."""
        places = [entry.item for entry in batch]
        encodings = [place.encoding for place in places]
        try:
            began_s = time.perf_counter()
            for place in places:
                self._metrics.queue_wait_s.observe(began_s - place.request.admitted_s)
            self._metrics.batch_size.observe(len(batch))
            self._metrics.batch_tokens.observe(max(entry.tokens for entry in batch) * len(batch))
            scores, took_s = await asyncio.get_running_loop().run_in_executor(
                self._infer_pool, self._timed_infer, encodings
            )
            self._metrics.inference_s.observe(took_s)
            self._measure(sum(entry.tokens for entry in batch) / max(took_s, 1e-6))
            for place, row in zip(places, scores, strict=True):
                if np.isfinite(row).all():
                    place.request.deliver(place.row, row)
                else:
                    log.error("the model gave a score that is not a finite number")
                    place.request.fail(InferenceError("the model gave a score that is not a finite number"))
        except asyncio.CancelledError:  # only `close` cancels; it has failed, or is about to fail, every request
            raise
        except BaseException:  # a panic in an extension must not leave entries unanswered
            log.exception("inference failed on a batch of %d", len(batch))
            for place in places:
                place.request.fail(InferenceError("inference failed; the service's log has the details"))
        finally:
            self._queue.finish(batch)

    def _timed_infer(self, encodings: Sequence[Encoding]) -> tuple[NDArray[np.float32], float]:
        began_s = time.perf_counter()
        scores = self._infer(encodings)
        return scores, time.perf_counter() - began_s

    def _measure(self, tokens_per_s: float) -> None:
        old = tokens_per_s if self._tokens_per_s is None else self._tokens_per_s
        self._tokens_per_s = (1 - _NEWEST_SHARE) * old + _NEWEST_SHARE * tokens_per_s

    def _refuse(self, refusal: Refusal | None, asked: int, unit: str) -> None:
        """Raise what a refusal of the queue means to a client."""
        if refusal is None:
            return
        if refusal in (Refusal.ENTRIES_EVER, Refusal.TOKENS_EVER):
            raise InvalidInputError(
                "inputs", f"found {asked} {unit}, more than the queue ever holds; send fewer at once"
            )
        rate = None if self._tokens_per_s is None else self._tokens_per_s * self._sessions
        raise QueueFullError(
            f"the queue has no room for {asked} more {unit}", retry_after_s=self._queue.drain_estimate_s(rate)
        )

    def _not_healthy(self) -> ServiceError:
        if self._closing:
            return DrainingError("the service shut down before this request could be run")
        return NotReadyError("the model's worker is not running")

    def _owner_ended(self, owner: asyncio.Task[None]) -> None:
        error = None if owner.cancelled() else owner.exception()
        if self._closing and error is None:
            return
        log.critical("the batcher's owner task died; readiness is false from now on", exc_info=error)
        self._fail_all(lambda: InferenceError("the model's worker died; the service's log has the details"))

    def _fail_all(self, make_error: Callable[[], ServiceError]) -> None:
        for request in list(self._requests):
            request.fail(make_error())
