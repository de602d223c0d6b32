"""What a refusal of the queue means to a client, and when to come again."""

from service.engine.queue import BatchQueue, Refusal
from service.engine.request import Work
from service.errors import InvalidInputError, QueueFullError, ServiceError

_NEWEST_SHARE = 0.2  # of the latest batch in the moving average of throughput


class Refusals:
    """Explains the refusals of a queue that `sessions` sessions empty, from the rate at which they do."""

    def __init__(self, queue: BatchQueue[Work], sessions: int) -> None:
        self._queue = queue
        self._sessions = sessions
        self._tokens_per_s: float | None = None  # of one session, without padding

    def learn(self, tokens: int, took_s: float) -> None:
        """Take a batch into account that one session has run."""
        rate = tokens / max(took_s, 1e-6)
        before = rate if self._tokens_per_s is None else self._tokens_per_s
        self._tokens_per_s = before + _NEWEST_SHARE * (rate - before)

    def explain(self, refusal: Refusal, asked: int, unit: str) -> ServiceError:
        """Return the error for a request of so many entries, windows or tokens."""
        if refusal in (Refusal.ENTRIES_EVER, Refusal.TOKENS_EVER):
            return InvalidInputError(
                "inputs", f"found {asked} {unit}, more than the queue ever holds; send fewer at once"
            )
        return self.full(asked, unit)

    def full(self, asked: int, unit: str) -> QueueFullError:
        """Return the error for a request that there is no room for now."""
        rate = None if self._tokens_per_s is None else self._tokens_per_s * self._sessions
        return QueueFullError(
            f"the queue has no room for {asked} more {unit}", retry_after_s=self._queue.drain_estimate_s(rate)
        )
