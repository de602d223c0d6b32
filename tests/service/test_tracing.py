"""Traces, read by the SDK's own exporter and by a server that speaks OTLP."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service import app as app_module
from service.tracing import Tracing
from tests.service.helpers import Wire, label_request, post, running, settings_for

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"  # the specification's example
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def exporter(monkeypatch):
    kept = InMemorySpanExporter()
    share = {"share": 1.0}
    monkeypatch.setattr(app_module, "_tracing", lambda _settings: Tracing("http://nowhere", share["share"], kept))
    kept.share = share
    return kept


def test_each_request_has_a_span_and_in_it_where_its_time_went(tiny_bundle, exporter):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            wire = Wire(client.app, asyncio.get_running_loop())
            wire.protocol.data_received(label_request("not very good"))
            await wire.answer()
            await client.post("/predict", json={"inputs": [["good"], ["bad movie"]]})
            await client.post("/v1/classify", json={"inputs": ""})

    asyncio.run(run())
    spans = exporter.get_finished_spans()
    whole = [span for span in spans if span.parent is None]
    assert [span.name for span in whole] == ["POST /v1/classify", "POST /predict", "POST /v1/classify"]
    assert [span.attributes["http.response.status_code"] for span in whole] == [200, 200, 422]
    assert [span.attributes["limbeck.tokens"] for span in whole] == [5, 7, 0]
    assert {span.status.status_code for span in whole} == {StatusCode.UNSET}
    for request in whole[:2]:
        parts = [span for span in spans if span.parent and span.parent.span_id == request.context.span_id]
        assert [part.name for part in parts] == ["tokenize", "queue", "inference"]
        times = [request.start_time, *(moment for part in parts for moment in (part.start_time, part.end_time))]
        assert times == sorted(times)
        assert times[-1] <= request.end_time
    assert "not very good" not in str([span.to_json() for span in spans])


@pytest.mark.parametrize("directly", [True, False])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_trace_that_came_is_continued_and_its_flag_wins(tiny_bundle, exporter, directly, sampled):
    exporter.share["share"] = 0.0 if sampled else 1.0
    header = f"00-{TRACE}-{PARENT}-0{int(sampled)}"

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            if directly:
                wire = Wire(client.app, asyncio.get_running_loop())
                named = (("Content-Type", "application/json"), ("traceparent", header))
                wire.protocol.data_received(post("/v1/classify", b'{"inputs": "good"}', *named))
                await wire.answer()
            else:
                await client.post("/predict", json={"inputs": "good"}, headers={"traceparent": header})

    asyncio.run(run())
    spans = exporter.get_finished_spans()
    assert len(spans) == (4 if sampled else 0)
    for span in spans:
        assert f"{span.context.trace_id:032x}" == TRACE
    if sampled:
        (whole,) = [span for span in spans if span.name.startswith("POST")]
        assert f"{whole.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("header", ["nonsense", "00-0-0-00", "\xff"])
def test_a_trace_that_is_none_is_left_alone(tiny_bundle, exporter, header):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            return await client.post(
                "/predict", json={"inputs": "good"}, headers={b"traceparent": header.encode("latin-1")}
            )

    assert asyncio.run(run()).status_code == 200
    assert len(exporter.get_finished_spans()) == 4


def test_a_collector_gets_them_over_http(tiny_bundle):
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = settings_for(
        tiny_bundle, otlp_endpoint=f"http://127.0.0.1:{server.server_port}", trace_share=1.0, request_log=False
    )

    async def run():
        async with running(settings) as client:
            await client.post("/v1/classify", json={"inputs": "good"})

    try:
        asyncio.run(run())  # the end of the app sends what waits
    finally:
        server.shutdown()
        server.server_close()
    paths, requests = zip(*received, strict=True)
    assert set(paths) == {"/v1/traces"}
    resource = requests[0].resource_spans[0]
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "limbeck"
    names = [
        span.name for request in requests for r in request.resource_spans for s in r.scope_spans for span in s.spans
    ]
    assert sorted(names) == ["POST /v1/classify", "inference", "queue", "tokenize"]
