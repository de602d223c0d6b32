"""Answers every request: takes it in, has it tokenized, forms batches whenever a session is free, hands out results.

All decisions are steps of one owner on the event loop, so there are no locks. Tokenization (`coalescer`) and inference
(`workers`) run in threads of their own, which hand their results back as steps. There is no wait timer unless
`max_batch_delay_ms` asks for one: what waits while the sessions are busy is what the next batch is made of.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.engine.coalescer import Coalescer, Tokenize
from service.engine.owner import Owner
from service.engine.queue import BatchQueue, Priority, Refusal
from service.engine.refusals import Refusals
from service.engine.request import Classified, Request, Work
from service.engine.tokenization import HEAD, Encoding, Reading, TextInput
from service.engine.worker import Batch, Infer, Missing, Outcome
from service.engine.workers import Workers
from service.errors import (
    DeadlineError,
    DrainingError,
    InferenceError,
    NoInputsError,
    NotReadyError,
    QueueFullError,
    ServiceError,
)
from service.metrics import EngineMetrics

log = logging.getLogger(__name__)

Observe = Callable[[list[NDArray[np.float32]], list[Encoding]], None]
"""Is told the outputs of a batch that are predictions, and what was read for each."""

_PREPARED = 1  # batch that waits for a session, so that none stands idle until the event loop's next turn
_THREADS_END_S = 2.0  # what `close` waits for threads: one that is left in ONNX Runtime can abort the ending process


class Batcher:
    """Classifies for one model. Create and use it on one event loop.

    `tokenize` and `infer` are called in threads, `infer` up to `sessions` times at once; it takes the encodings of
    one batch and returns scores (B, C) float32. A call of it that takes longer than `hung_session_s` seconds is given
    up, and `make_infer` makes a new session in its place. `observe` is told what each batch gave.
    """

    def __init__(
        self,
        queue: BatchQueue[Work],
        tokenize: Tokenize,
        infer: Infer,
        *,
        make_infer: Callable[[], Infer],
        sessions: int,
        hung_session_s: float,
        metrics: EngineMetrics,
        observe: Observe,
    ) -> None:
        self._queue = queue
        self._observe = observe
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._owner = Owner(self._loop, self._died)
        self._coalescer = Coalescer(tokenize, self._owner, self._tokenized)
        self._workers = Workers(
            infer,
            make_infer,
            self._owner,
            ran=self._ran,
            hung=self._hung,
            changed=self._dispatch,
            sessions=sessions,
            hung_session_s=hung_session_s,
        )
        self._requests: set[Request] = set()  # accepted, not yet answered
        self._idle = asyncio.Event()
        self._closing = False
        self._asking_again: asyncio.TimerHandle | None = None
        self._refusals = Refusals(queue, sessions)
        self._unwatch = metrics.watch_queue(
            lambda: queue.waiting_entries,
            lambda: queue.oldest_wait_s(time.monotonic()),
            lambda: queue.capacity_entries,
        )

    @property
    def healthy(self) -> bool:
        """Whether requests are taken: false the moment the owner dies, and while no session is there."""
        return self._owner.alive and self._workers.ready > 0

    @property
    def full(self) -> bool:
        """Whether a request of any size would be refused now, and for no other reason."""
        return self._queue.full and self.healthy and not self._closing

    @property
    def waiting_entries(self) -> int:
        """How many entries wait for a batch or for the tokenizer."""
        return self._queue.waiting_entries + self._queue.reserved_entries

    def refusal(self) -> QueueFullError:
        """Return what it would be refused with."""
        return self._refusals.full(1, "entries")

    async def classify(
        self,
        inputs: Sequence[TextInput],
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline_s: float | None = None,
        reading: Reading = HEAD,
    ) -> list[Classified]:
        """Return a result for each input, in order, or raise one ServiceError for all of them; see `submit`."""
        return await self.submit(inputs, priority=priority, deadline_s=deadline_s, reading=reading)

    def submit(
        self,
        inputs: Sequence[TextInput],
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline_s: float | None = None,
        reading: Reading = HEAD,
        observed: bool = True,
    ) -> asyncio.Future[list[Classified]]:
        """Accept a request whole, or refuse it at once; the future gets a result for each input or one ServiceError.

        Read in windows an input has a result for each of them, one after the other (`Encoding.windows` of the first
        are the others); read whole, the future gets InvalidInputError when one is too long.

        What is not `observed` is computed like anything else and not counted as predictions.

        `deadline_s` is on the clock of `time.monotonic`: what has not begun by then is never run, and the request
        gets DeadlineError. Cancelling the future drops those of its entries that have not begun. Raises
        QueueFullError, DrainingError, NotReadyError, InvalidInputError or DeadlineError; the future may get the same
        and InferenceError. Call it on the event loop.
        """
        if self._closing or not self.healthy:
            raise self._not_healthy()
        count = len(inputs)
        if not count:
            raise NoInputsError("inputs")
        wait_s = None if deadline_s is None else deadline_s - time.monotonic()
        if wait_s is not None and wait_s <= 0:
            self._metrics.expired.inc(count)
            raise DeadlineError()
        if refusal := self._queue.reserve(count):
            raise self._refusals.explain(refusal, count, "entries")
        future: asyncio.Future[list[Classified]] = self._loop.create_future()
        request = Request(future, inputs, priority, deadline_s, reading, observed=observed)
        self._requests.add(request)
        future.add_done_callback(partial(self._answered, request))
        if wait_s is not None:
            request.timer = self._owner.later(wait_s, self._expire, request)
        self._coalescer.add(request)
        return future

    async def close(self, timeout_s: float) -> None:
        """Refuse new requests, finish what was accepted within `timeout_s` seconds, fail the rest."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._requests:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log.warning("%d requests were not finished after %s s; they get 503", len(self._requests), timeout_s)
        self._fail_all(lambda: DrainingError("the service shut down before this request could be run"))
        await asyncio.sleep(0)
        self._unwatch()
        self._owner.stop()
        threads = [self._coalescer.close(), *self._workers.close()]
        end_s = time.monotonic() + _THREADS_END_S
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end_s:
            await asyncio.sleep(0.005)

    def _tokenized(self, complete: list[Request], unreadable: list[Request], took_s: float) -> None:
        """Let requests wait for a batch."""
        self._metrics.tokenization_s.observe(took_s)
        for request in unreadable:
            request.fail(InferenceError("tokenization failed; the service's log has the details"))
        now_s = time.monotonic()
        admitted = truncated = 0
        for request in complete:
            if request.future.done():
                continue
            if error := request.too_long():
                request.fail(error)
                continue
            works = request.make_works()
            if refusal := self._queue.admit(works, now_s, len(request.inputs)):
                if refusal in (Refusal.TOKENS_EVER, Refusal.TOKENS_NOW):
                    request.fail(self._refusals.explain(refusal, sum(work.tokens for work in works), "tokens"))
                else:
                    request.fail(self._refusals.explain(refusal, len(works), "windows"))
                continue
            admitted += len(works)
            truncated += sum([encoding.truncated for encoding in request.encodings])
        self._metrics.inputs.inc(admitted)
        self._metrics.inputs_truncated.inc(truncated)
        self._dispatch()

    def _dispatch(self) -> None:
        """Hand out batches as long as there are sessions for them."""
        if self._asking_again is not None:
            self._asking_again.cancel()
            self._asking_again = None
        now_s = time.monotonic()
        while (ahead := self._workers.outstanding - self._workers.ready) < _PREPARED:
            formed = self._queue.next_batch(now_s, ahead=ahead >= 0)
            self._drop_late(formed.expired)
            if formed.entries:
                self._workers.run(Batch(formed.entries))
            elif not formed.expired:
                if formed.ask_again_s is not None:
                    self._asking_again = self._owner.later(formed.ask_again_s - now_s, self._dispatch)
                return

    def _ran(self, batch: Batch, outcome: Outcome) -> None:
        """Hand out what a batch gave."""
        self._drop_late(batch.skipped)
        rows = tokens = longest = 0
        outputs, encodings = [], []
        for work, result in zip(batch.works, outcome.results, strict=True):
            request = work.request
            if result is Missing.SKIPPED:
                continue
            rows += 1
            tokens += work.tokens
            longest = max(longest, work.tokens)
            queue_s = outcome.began_s - work.admitted_s
            self._metrics.queue_wait_s.observe(queue_s)
            if result is Missing.NOT_FINITE:
                request.fail(InferenceError("the model gave a score that is not a finite number"))
            elif result is Missing.FAILED:
                request.fail(InferenceError("inference failed; the service's log has the details"))
            else:
                request.deliver(work, result, queue_s, outcome.took_s)
                if request.observed:
                    outputs.append(result)
                    encodings.append(work.encoding)
        if outcome.retried:
            self._metrics.failed_batches.inc()
        elif rows:
            self._metrics.inference_s.observe(outcome.took_s)
            self._refusals.learn(tokens, outcome.took_s)
        if rows:
            self._metrics.batch_size.observe(rows)
            self._metrics.batch_tokens.observe(longest * rows)
        self._dispatch()
        if outputs:
            self._observe(outputs, encodings)

    def _hung(self, batch: Batch) -> None:
        self._metrics.hung_sessions.inc()
        self._drop_late(batch.skipped)
        for work in batch.works:
            work.request.fail(
                InferenceError("inference took too long and was given up; the service's log has the details")
            )
        self._dispatch()

    def _drop_late(self, works: list[Work]) -> None:
        """Answer entries that were found past their deadline, unless they were cancelled or have failed."""
        for work in works:
            work.request.fail(DeadlineError())
            self._count_dropped(work.request, 1)

    def _expire(self, request: Request) -> None:
        """Answer a request whose deadline is over, unless all of it is in batches: workers look at the clock, too."""
        dropped = self._queue.drop(request.works)
        if dropped or not request.works:
            request.fail(DeadlineError())
            self._count_dropped(request, dropped)

    def _answered(self, request: Request, _future: asyncio.Future[list[Classified]]) -> None:
        """Clear away what a request leaves behind, however it ended."""
        self._requests.discard(request)
        if request.timer is not None:
            request.timer.cancel()
        if request.missing:
            if request.works:
                self._count_dropped(request, self._queue.drop(request.works))
            else:
                self._queue.release(len(request.inputs))
                self._count_dropped(request, len(request.inputs))
        request.works = []  # which refer to it: a cycle would be left to Python's collector
        if self._closing and not self._requests:
            self._idle.set()

    def _count_dropped(self, request: Request, entries: int) -> None:
        if request.future.cancelled():
            self._metrics.cancelled.inc(entries)
        elif isinstance(request.future.exception(), DeadlineError):
            self._metrics.expired.inc(entries)

    def _not_healthy(self) -> ServiceError:
        if self._closing:
            return DrainingError("the service is shutting down")
        return NotReadyError("the model's worker is not running")

    def _died(self) -> None:
        self._fail_all(lambda: InferenceError("the model's worker died; the service's log has the details"))

    def _fail_all(self, make_error: Callable[[], ServiceError]) -> None:
        for request in list(self._requests):
            request.fail(make_error())
