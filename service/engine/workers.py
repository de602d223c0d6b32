"""The workers of one model: hands batches out, and replaces a worker whose session hangs."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from service.engine.owner import Owner
from service.engine.worker import Batch, Infer, Outcome, Worker

log = logging.getLogger(__name__)

_LOOKS = 4  # at one call before it counts as hung: a process that stood still as a whole is looked at once
_MOST_HUNG = 4  # threads with their sessions that may be stuck at once, beside the working ones


class Workers:
    """Threads that share one inbox. The methods belong to the event loop's thread.

    `sessions` of them begin with `infer`. One that is in the same call for `hung_session_s` seconds is left to
    itself: `hung` gets its batch, and a new thread takes its place, which gets a session of its own from `make_infer`.
    `ran` gets every other batch. Both, and `changed`, which says that a worker is ready, are steps of `owner`. When
    more than a few threads are stuck, or the last session cannot be made again, the owner dies.
    """

    def __init__(
        self,
        infer: Infer,
        make_infer: Callable[[], Infer],
        owner: Owner,
        *,
        ran: Callable[[Batch, Outcome], None],
        hung: Callable[[Batch], None],
        changed: Callable[[], None],
        sessions: int,
        hung_session_s: float,
    ) -> None:
        self._make_infer = make_infer
        self._owner = owner
        self._ran = ran
        self._hung = hung
        self._changed = changed
        self._hung_session_s = hung_session_s
        self._inbox: SimpleQueue[Batch | None] = SimpleQueue()
        self._workers = {self._new(lambda: infer) for _ in range(sessions)}
        self._loading: set[Worker] = set()
        self._stuck: list[Worker] = []
        self._seen: dict[Worker, tuple[int, int]] = {}  # the call it was in at the latest look, and at how many before
        self.outstanding = 0  # batches handed out and not come back
        self._watch()

    @property
    def ready(self) -> int:
        """Number of workers that have a session."""
        return len(self._workers) - len(self._loading)

    def run(self, batch: Batch) -> None:
        """Hand a batch to the next worker that is free."""
        self.outstanding += 1
        self._inbox.put(batch)

    def close(self) -> list[threading.Thread]:
        """Let the threads end after the batch that they are in, and return those that do not hang."""
        for _ in range(len(self._workers) + len(self._stuck)):
            self._inbox.put(None)
        return [worker.thread for worker in self._workers]

    def _new(self, load: Callable[[], Infer]) -> Worker:
        return Worker(
            self._inbox,
            load,
            loaded=lambda worker, error: self._owner.soon_from_thread(self._loaded, worker, error),
            finished=lambda batch, outcome: self._owner.soon_from_thread(self._finished, batch, outcome),
        )

    def _loaded(self, worker: Worker, error: Exception | None) -> None:
        self._loading.discard(worker)
        if error is None:
            self._changed()
            return
        log.error("a session that hung could not be replaced: %s", error, exc_info=error)
        self._workers.discard(worker)
        if not self._workers:
            self._owner.die("no session is left")

    def _finished(self, batch: Batch, outcome: Outcome) -> None:
        if not batch.abandoned:
            self.outstanding -= 1
            self._ran(batch, outcome)

    def _watch(self) -> None:
        self._owner.later(self._hung_session_s / _LOOKS, self._look)

    def _look(self) -> None:
        seen = {}
        for worker in list(self._workers):
            batch, call = worker.batch, worker.calls
            if batch is None:
                continue
            last_call, looks = self._seen.get(worker, (call, -1))
            seen[worker] = (call, looks + 1 if call == last_call else 0)
            if seen[worker][1] == _LOOKS:
                self._replace(worker, batch)
        self._seen = seen
        self._watch()

    def _replace(self, worker: Worker, batch: Batch) -> None:
        log.error(
            "a session hangs: one call with %d entries takes more than %g s; replacing it",
            len(batch.works),
            self._hung_session_s,
        )
        worker.replaced = True
        batch.abandoned = True
        self.outstanding -= 1
        self._workers.discard(worker)
        self._stuck = [other for other in self._stuck if other.thread.is_alive()] + [worker]
        self._hung(batch)
        if len(self._stuck) > _MOST_HUNG:
            self._owner.die(f"{len(self._stuck)} sessions hang")
            return
        replacement = self._new(self._make_infer)
        self._workers.add(replacement)
        self._loading.add(replacement)
