"""A thread that runs batches in one session and isolates what fails in them."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.request import Work
from service.engine.tokenization import Encoding

log = logging.getLogger(__name__)

Infer = Callable[[Sequence[Encoding]], NDArray[np.float32]]


class Missing(Enum):
    """Why an entry of a batch has no scores."""

    SKIPPED = "cancelled or past its deadline before the batch began"
    FAILED = "the model raised an error, also for this entry alone"
    NOT_FINITE = "the model gave a score that is not a finite number"


class Batch:
    """Entries that are to be run together."""

    __slots__ = ("abandoned", "skipped", "works")

    def __init__(self, works: list[Work]) -> None:
        self.works = works
        self.skipped: list[Work] = []  # those that its worker found cancelled or past their deadline
        self.abandoned = False  # its entries were answered with an error; a late result is dropped


class Outcome(NamedTuple):
    """What came of a batch."""

    results: list[NDArray[np.float32] | Missing]  # one for each entry
    began_s: float  # on the clock of time.monotonic
    took_s: float
    retried: bool


class Worker:
    """One thread with one session.

    It takes batches from `inbox`, which all workers share, and gives each back to `finished`, called in its thread.
    `load` makes the function that infers; `loaded` is called in the thread after it, with the error if it failed.
    """

    def __init__(
        self,
        inbox: SimpleQueue[Batch | None],
        load: Callable[[], Infer],
        loaded: Callable[["Worker", Exception | None], None],
        finished: Callable[[Batch, Outcome], None],
    ) -> None:
        self._inbox = inbox
        self._load = load
        self._loaded = loaded
        self._finished = finished
        self.batch: Batch | None = None  # the one it is in; written by its thread, read by the watchdog
        self.calls = 0  # rises with each call of the model; likewise
        self.replaced = False
        # a daemon: one that hangs must not keep the process from ending
        self.thread = threading.Thread(target=self._work, name="limbeck-infer", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        """The thread."""
        try:
            self._infer = self._load()
        except Exception as error:  # noqa: BLE001 - reported by whoever replaces workers
            self._loaded(self, error)
            return
        self._loaded(self, None)
        while not self.replaced and (batch := self._inbox.get()) is not None:
            self.calls += 1  # before `batch`, so that nobody sees a new batch with the number of an old call
            self.batch = batch
            outcome = self._run(batch)
            self.batch = None
            self._finished(batch, outcome)

    def _run(self, batch: Batch) -> Outcome:
        """Run what is still wanted; alone, whatever the model raised an error for in company."""
        began_s = time.monotonic()
        results: list[NDArray[np.float32] | Missing] = [Missing.SKIPPED] * len(batch.works)
        wanted = [row for row, work in enumerate(batch.works) if _wanted(work, began_s)]
        if len(wanted) < len(batch.works):
            batch.skipped = [work for row, work in enumerate(batch.works) if row not in wanted]
        retried = False
        if wanted:
            try:
                found = self._call([batch.works[row] for row in wanted])
            except BaseException as error:  # a panic in an extension, too; it has seen token ids and no text
                log.exception("inference failed on a batch of %d; running its entries alone: %s", len(wanted), error)
                retried = True
                found = [self._run_alone(batch.works[row]) for row in wanted]
            for row, result in zip(wanted, found, strict=True):
                results[row] = result
        return Outcome(results, began_s, time.monotonic() - began_s, retried)

    def _run_alone(self, work: Work) -> NDArray[np.float32] | Missing:
        if work.request.future.done():
            return Missing.FAILED
        self.calls += 1
        try:
            return self._call([work])[0]
        except BaseException as error:
            log.exception("inference failed on one entry of %d tokens: %s", work.tokens, error)
            return Missing.FAILED

    def _call(self, works: Sequence[Work]) -> list[NDArray[np.float32] | Missing]:
        scores = self._infer([work.encoding for work in works])
        if len(scores) != len(works):
            raise ValueError(f"the model gave {len(scores)} rows for a batch of {len(works)}")
        if np.isfinite(scores).all():
            return list(scores)
        log.error("the model gave a score that is not a finite number")
        return [row if np.isfinite(row).all() else Missing.NOT_FINITE for row in scores]


def _wanted(work: Work, now_s: float) -> bool:
    """Whether an entry is to be run; the last moment to see a cancellation or a deadline."""
    return not work.request.future.done() and (work.deadline_s is None or now_s < work.deadline_s)
