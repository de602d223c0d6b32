"""Traces for OpenTelemetry: of each request a span, and in it what its time went to.

The spans are made when the request has been answered, from the times that the engine took anyway, so that tracing
costs nothing where it is off and little of the event loop where it is on. W3C's `traceparent` is read; its sampling
flag wins over our share. Needs the extra `otel`.
"""

import time

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.visits import Visit

_NS = 1_000_000_000
_SERVER_FAULT = 500


class Tracing:
    """Sends spans to the collector at `endpoint` (OTLP over HTTP), of a `share` of the requests that nobody has traced.

    `exporter` is another place for them.
    """

    def __init__(self, endpoint: str, share: float, exporter: SpanExporter | None = None) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)), resource=Resource.create({"service.name": "limbeck"})
        )
        url = f"{endpoint.rstrip('/')}/v1/traces"
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("limbeck")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, visit: Visit, method: str, status: int, took_s: float) -> None:
        """Make the spans of a request that has just been answered."""
        to_wall_s = time.time() - time.monotonic()

        def at(moment_s: float) -> int:
            return int((moment_s + to_wall_s) * _NS)

        span = self._tracer.start_span(
            f"{method} {visit.route}",
            self._propagator.extract({"traceparent": visit.traceparent.decode("latin-1")}),
            SpanKind.SERVER,
            start_time=at(visit.arrived_s),
        )
        if span.is_recording():
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": visit.route,
                    "http.response.status_code": status,
                    "limbeck.model": visit.model,
                    "limbeck.version": visit.version,
                    "limbeck.dialect": visit.dialect,
                    "limbeck.inputs": visit.inputs,
                    "limbeck.tokens": visit.tokens,
                    "limbeck.request_id": visit.request_id,
                    "limbeck.key": "" if visit.caller is None else visit.caller.id,
                }
            )
            if status >= _SERVER_FAULT:
                span.set_status(Status(StatusCode.ERROR, visit.error))
            if visit.inputs:
                began_s = visit.answered_s - visit.inference_s
                waited_s = began_s - visit.queue_s
                inside = trace.set_span_in_context(span)
                for name, begin_s, end_s in (
                    ("tokenize", visit.arrived_s, waited_s),
                    ("queue", waited_s, began_s),
                    ("inference", began_s, visit.answered_s),
                ):
                    child = self._tracer.start_span(name, inside, start_time=at(begin_s))
                    child.end(at(max(begin_s, end_s)))
        span.end(at(visit.arrived_s + took_s))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
