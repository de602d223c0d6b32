"""The service's Prometheus metrics: their names, units and buckets, and the middleware that counts requests."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.board import Board
from service.instruments import Counter, Gauge, Histogram, Instruments

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ENTRIES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 65536)

UNMATCHED = "unmatched"
"""The route of requests to paths that do not exist: what clients invent must not become a label value."""


@dataclass(frozen=True)
class EngineMetrics:
    """The metrics of one model's queue, bound to its labels. `_s` are seconds."""

    queue_wait_s: Histogram
    tokenization_s: Histogram
    inference_s: Histogram
    batch_size: Histogram
    batch_tokens: Histogram
    inputs: Counter
    inputs_truncated: Counter
    queue_entries: Gauge
    cancelled: Counter
    expired: Counter
    failed_batches: Counter
    hung_sessions: Counter

    def watch_queue(self, entries: Callable[[], int]) -> None:
        """Read the gauge from `entries` whenever it is scraped."""
        self.queue_entries.set_function(entries)


class Metrics:
    """All metrics of one app, in a registry of its own, so that several apps can live in one process.

    With a board the registry shows the numbers of all its processes; this one writes to `slot`.
    """

    def __init__(self, board: Board | None = None, slot: int = 0) -> None:
        instruments = Instruments(board or Board(), slot)
        self._counter, self._gauge, self._histogram = instruments.counter, instruments.gauge, instruments.histogram
        self.refresh = instruments.refresh
        self.registry = CollectorRegistry()
        self.registry.register(instruments)
        model = ("model", "version")
        self.requests = self._counter("limbeck_requests_total", "Answered requests", "model", "route", "status")
        self.request_duration_s = self._histogram(
            "limbeck_request_duration_seconds",
            "From the request's head to the last byte of its answer",
            _SECONDS,
            "route",
        )
        self.rejected = self._counter(
            "limbeck_rejected_total", "Requests turned away without an answer from the model, by error code", "reason"
        )
        self.model_ready = self._gauge(
            "limbeck_model_ready", "1 while the model answers, 0 when it drains or died", *model, "variant", merge=min
        )
        self._queue_wait = self._histogram(
            "limbeck_queue_wait_seconds", "An entry's time between admission and its batch", _SECONDS, *model
        )
        self._tokenization = self._histogram(
            "limbeck_tokenization_seconds", "One call of the tokenizer, for one or several requests", _SECONDS, *model
        )
        self._inference = self._histogram("limbeck_inference_seconds", "One batch in the model", _SECONDS, *model)
        self._batch_size = self._histogram("limbeck_batch_size", "Entries in a batch", _ENTRIES, *model)
        self._batch_tokens = self._histogram("limbeck_batch_tokens", "Tokens in a batch, with padding", _TOKENS, *model)
        self._inputs = self._counter("limbeck_inputs_total", "Admitted entries", *model)
        self._truncated = self._counter(
            "limbeck_inputs_truncated_total", "Admitted entries cut to the model's max_length", *model
        )
        self._bound: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._queue_entries = self._gauge("limbeck_queue_entries", "Entries that wait for a batch", *model)
        self._cancelled = self._counter(
            "limbeck_cancelled_entries_total", "Entries that were not run because their client was gone", *model
        )
        self._expired = self._counter(
            "limbeck_expired_entries_total", "Entries that were not run because their deadline had passed", *model
        )
        self._failed_batches = self._counter(
            "limbeck_failed_batches_total",
            "Batches in which the model failed; their entries were run again alone",
            *model,
        )
        self._hung_sessions = self._counter(
            "limbeck_hung_sessions_total", "Sessions given up because a call took more than hung_session_s", *model
        )
        self.workers = self._gauge("limbeck_workers", "Worker processes that answer").labels()
        self.worker_restarts = self._counter(
            "limbeck_worker_restarts_total", "Worker processes that ended unasked, each replaced by a new one"
        ).labels()

    def engine(self, model: str, version: str) -> EngineMetrics:
        """Return the metrics of one loaded model."""
        return EngineMetrics(
            queue_wait_s=self._queue_wait.labels(model, version),
            tokenization_s=self._tokenization.labels(model, version),
            inference_s=self._inference.labels(model, version),
            batch_size=self._batch_size.labels(model, version),
            batch_tokens=self._batch_tokens.labels(model, version),
            inputs=self._inputs.labels(model, version),
            inputs_truncated=self._truncated.labels(model, version),
            queue_entries=self._queue_entries.labels(model, version),
            cancelled=self._cancelled.labels(model, version),
            expired=self._expired.labels(model, version),
            failed_batches=self._failed_batches.labels(model, version),
            hung_sessions=self._hung_sessions.labels(model, version),
        )

    def answered(self, model: str, route: str, status: int, took_s: float) -> None:
        """Count one request. `model` is empty when none was found, `route` is the template of its path."""
        bound = self._bound.get((model, route, status))
        if bound is None:
            bound = self.requests.labels(model, route, str(status)), self.request_duration_s.labels(route)
            self._bound[model, route, status] = bound
        requests, duration_s = bound
        requests.inc()
        duration_s.observe(took_s)


class RequestMetricsMiddleware:
    """Counts and times each HTTP request by the template of its route.

    The model is what the route put into `request.state.model` after it had found one; empty otherwise. Routes find in
    `request.state.arrived_s` when the request came.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `send` that sees the status."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # stays when nobody was left to answer
        state = scope.setdefault("state", {})
        state["arrived_s"] = time.monotonic()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self._metrics.answered(state.get("model", ""), route, status, time.monotonic() - state["arrived_s"])
