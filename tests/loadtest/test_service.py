"""Against the service itself, and the bytes of requests against a parser of somebody else."""

import asyncio
import importlib.util
import sys
import types
from pathlib import Path

import h11
import pytest

from benchmarks.serving.service_process import serving
from bundle import Bundle
from loadtest.dialects import asked
from loadtest.result import read_result
from loadtest.server_metrics import numbers_of
from loadtest.target import headers_of, parse_url, whole_request
from tests.loadtest.test_command import drawings, invoke
from tests.service.helpers import running, settings_for

ROOT = Path(__file__).parents[2]


def test_the_report_has_the_servers_own_metrics_beside_the_clients(tiny_bundle: Bundle, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with serving(tiny_bundle.folder, sessions=1, workers=1, log_level="error") as (_, port):
        found = invoke(
            *("run", f"http://127.0.0.1:{port}", "--rate", 100, "--duration", 4, "--batch", 3, "--api-key-file", key),
            *("--warm-up", 1, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html"),
        )
        wrong = invoke("run", f"http://127.0.0.1:{port}", "--rate", 5, "--model", "nobody")
        other = invoke("run", f"http://127.0.0.1:{port}", "--rate", 5, "--pairs")
    assert found.exit_code == 0, found.stderr
    (step,) = read_result(tmp_path / "a.json").steps
    assert step.outcome.errors == {}
    assert len(step.server) >= 3
    assert all(moment.batch_size >= 1 and moment.inference_ms > 0 for moment in step.server)
    # what the server spends on a batch is within what its clients wait
    assert min(moment.inference_ms for moment in step.server) < step.outcome.max_ms
    assert len(drawings((tmp_path / "a.html").read_text(encoding="utf-8"))) == 6
    assert "secret" not in (tmp_path / "a.json").read_text() + (tmp_path / "a.html").read_text()
    assert wrong.exit_code == other.exit_code == 1
    assert "nobody/classify: the first request was answered with status 404" in wrong.stderr
    assert "status 422" in other.stderr or "status 400" in other.stderr


def test_the_servers_numbers_are_read_as_the_service_writes_them(tiny_bundle: Bundle) -> None:
    async def scraped() -> str:
        async with running(settings_for(tiny_bundle)) as client:
            for count in (1, 3):
                assert (await client.post("/v1/classify", json={"inputs": ["a good movie"] * count})).status_code == 200
            return (await client.get("/metrics")).text

    numbers = numbers_of(asyncio.run(scraped()))
    # the golden check at the start does not pass through the queue
    assert numbers["limbeck_batch_size_sum"] == 4
    assert numbers["limbeck_batch_size_count"] == 2
    assert numbers["limbeck_queue_entries"] == 0
    assert numbers["limbeck_inference_seconds_sum"] > 0


@pytest.mark.parametrize(
    ("url", "host"), [("http://h:81/a/", "h:81"), ("http://h:80", "h"), ("http://[::1]:81", "[::1]:81")]
)
def test_requests_are_http(url: str, host: str) -> None:
    target, request = parse_url(url), asked("detectors", ["Zwölf 👍", "b"], "m")
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(whole_request(target, request, headers_of(request, "key", reuse=False)))
    head, body, end = parser.next_event(), parser.next_event(), parser.next_event()
    assert isinstance(end, h11.EndOfMessage)
    assert (head.method, head.target) == (b"POST", f"{target.prefix}/api/v1/text/contents".encode())
    headers = dict(head.headers.raw_items())
    assert headers[b"Host"] == host.encode()
    assert headers[b"Authorization"] == b"Bearer key"
    assert headers[b"detector-id"] == b"m"
    assert headers[b"Connection"] == b"close"
    assert bytes(body.data).decode() == '{"contents":["Zwölf 👍","b"]}'


def test_the_locust_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Locust, whose own dependencies are many: what the task posts and what it calls a failure."""
    stub = types.ModuleType("locust")
    stub.FastHttpUser, stub.task, stub.constant_throughput = object, lambda function: function, lambda rate: rate
    monkeypatch.setitem(sys.modules, "locust", stub)
    (tmp_path / "texts.txt").write_text("only this\n\n")
    monkeypatch.setenv("LIMBECK_TEXTS", str(tmp_path / "texts.txt"))
    monkeypatch.setenv("LIMBECK_MODEL", "mine")
    spec = importlib.util.spec_from_file_location("locustfile", ROOT / "examples/locustfile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Response:
        failures: list[str] = []  # noqa: RUF012

        def __init__(self, status: int, labels: list[str]) -> None:
            self.status_code, self.labels = status, labels

        def __enter__(self) -> "Response":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def json(self) -> dict:
            return {"results": [{"labels": self.labels}]}

        def failure(self, why: str) -> None:
            self.failures.append(why)

    posts = []
    for response in (Response(200, ["good"]), Response(200, []), Response(429, [])):

        def post(path: str, answer: Response = response, **options: object) -> Response:
            posts.append((path, options["json"]))
            return answer

        user = module.Classifying()
        user.client = types.SimpleNamespace(post=post)
        user.classify()
    assert posts == [("/v1/models/mine/classify", {"inputs": ["only this"], "top_k": 1})] * 3
    assert Response.failures == ["an answer without a label", "status 429"]
