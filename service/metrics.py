"""The service's Prometheus metrics: their names, units and buckets."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from service.board import Board
from service.instruments import Counter, Gauge, Histogram, Instruments
from service.visits import Visit

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SHORT_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1)
_ENTRIES = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 65536)


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
    queue_oldest_s: Gauge
    queue_capacity: Gauge
    cancelled: Counter
    expired: Counter
    failed_batches: Counter
    hung_sessions: Counter

    def watch_queue(
        self, entries: Callable[[], float], oldest_s: Callable[[], float], capacity: Callable[[], float]
    ) -> Callable[[], None]:
        """Read the gauges from these whenever they are scraped; what is returned ends that."""
        watched = ((self.queue_entries, entries), (self.queue_oldest_s, oldest_s), (self.queue_capacity, capacity))
        for gauge, read in watched:
            gauge.set_function(read)

        def forget() -> None:
            for gauge, read in watched:
                gauge.forget(read)

        return forget


class Metrics:
    """All metrics of one app, in a registry of its own, so that several apps can live in one process.

    With a board the registry shows the numbers of all its processes; this one writes to `slot`.
    """

    def __init__(self, board: Board | None = None, slot: int = 0) -> None:
        self.instruments = instruments = Instruments(board or Board(), slot)
        self._counter, self._gauge, self._histogram = instruments.counter, instruments.gauge, instruments.histogram
        self.refresh, self.total = instruments.refresh, instruments.total
        self.registry = CollectorRegistry()
        self.registry.register(instruments)
        model = ("model", "version")
        self.requests = self._counter(
            "limbeck_requests_total", "Answered requests", *model, "dialect", "route", "status"
        )
        self._key_requests = self._counter(
            "limbeck_key_requests_total", "Answered requests of each API key, by its id", "key", "status"
        )
        self._key_tokens = self._counter("limbeck_key_tokens_total", "Tokens read for each API key", "key")
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
        self.load_failures = self._counter(
            "limbeck_model_load_failures_total", "Bundles that could not be taken into service, by name", "model"
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
        self._serialization = self._histogram(
            "limbeck_serialization_seconds",
            "From a request's last result to its answer's last byte written",
            _SHORT_SECONDS,
            *model,
        )
        self._bound: dict[tuple[str, str, str, str, int], tuple[Counter, Histogram, Histogram | None]] = {}
        self.tokens = self._counter(
            "limbeck_tokens_total", "Tokens that the model read to predict, without padding", *model
        )
        self.unknown_tokens = self._counter(
            "limbeck_unknown_tokens_total", "Tokens that stand for what the vocabulary lacks", *model
        )
        self.predictions = self._counter(
            "limbeck_predictions_total", "Entries, by the label they were given", *model, "label"
        )
        self.confidence = self._histogram("limbeck_prediction_confidence", "Highest score of an entry", _SHARES, *model)
        self.entropy = self._histogram(
            "limbeck_prediction_entropy", "Entropy of an entry's scores, as a share of the highest", _SHARES, *model
        )
        self.reference_label_share = self._gauge(
            "limbeck_reference_label_share",
            "Share of a label among those that the bundle's test texts were given",
            *model,
            "label",
            merge=min,
        )
        self._queue_oldest = self._gauge(
            "limbeck_queue_oldest_seconds", "How long the oldest entry has waited for a batch", *model, merge=max
        )
        self._queue_capacity = self._gauge(
            "limbeck_queue_capacity_entries", "Most entries that may wait for a batch", *model
        )
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
        self.rollout_share = self._gauge(
            "limbeck_rollout_share",
            "Share of the requests without a version that a rollout gives to its candidate",
            *model,
            merge=max,
        )
        self.rolled_back = self._gauge(
            "limbeck_rolled_back",
            "1 while a candidate is kept from requests because it broke a limit",
            *model,
            merge=max,
        )
        self.rollout_requests = self._counter(
            "limbeck_rollout_requests_total",
            "Requests that a candidate has answered in a rollout, or failed to; kind is canary or shadow",
            *model,
            "kind",
        )
        self.rollout_faults = self._counter(
            "limbeck_rollout_faults_total", "Those of them that ended with a fault of ours", *model, "kind"
        )
        self.rollout_slow_requests = self._counter(
            "limbeck_rollout_slow_requests_total", "Canary requests that took the engine longer than max_p99_ms", *model
        )
        self.shadow_comparisons = self._counter(
            "limbeck_shadow_comparisons_total", "Texts that candidate and stable version have both answered", *model
        )
        self.shadow_disagreements = self._counter(
            "limbeck_shadow_disagreements_total", "Those of them that the two have decided differently", *model
        )
        self.shadows_shed = self._counter(
            "limbeck_shadows_shed_total", "Shadow requests left out because a queue was not nearly empty", *model
        )
        self.log_lines_dropped = self._gauge(
            "limbeck_log_lines_dropped", "Lines of the request log that could not be written since the start"
        ).labels()
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
            queue_oldest_s=self._queue_oldest.labels(model, version),
            queue_capacity=self._queue_capacity.labels(model, version),
            cancelled=self._cancelled.labels(model, version),
            expired=self._expired.labels(model, version),
            failed_batches=self._failed_batches.labels(model, version),
            hung_sessions=self._hung_sessions.labels(model, version),
        )

    def answered(self, visit: Visit, status: int, now_s: float) -> None:
        """Count one request, whose answer was written `now_s` on the clock `time.monotonic`."""
        labels = (visit.model, visit.version, visit.dialect, visit.route, status)
        bound = self._bound.get(labels)
        if bound is None:
            bound = self._bound[labels] = (
                self.requests.labels(*labels[:4], str(status)),
                self.request_duration_s.labels(visit.route),
                self._serialization.labels(visit.model, visit.version) if visit.model else None,
            )
        requests, duration_s, serialization_s = bound
        requests.inc()
        duration_s.observe(now_s - visit.arrived_s)
        if visit.answered_s and serialization_s is not None:
            serialization_s.observe(now_s - visit.answered_s)
        if visit.caller is not None:
            self._key_requests.labels(visit.caller.id, str(status)).inc()
            self._key_tokens.labels(visit.caller.id).inc(visit.tokens)
