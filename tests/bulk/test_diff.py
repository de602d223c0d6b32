"""`limbeck diff` between bundles, and against endpoints that misbehave."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bulk import endpoint
from bulk.classifier import Classifier
from bulk.dialects import DIALECTS, Labels, dialect_of
from bulk.endpoint import Endpoint
from bulk.errors import EndpointError
from bundle import Bundle
from tests.bulk.helpers import multi_label_bundle, pair_bundle, run_limbeck, sentences, start_limbeck
from tests.support.bundles import make_bundle
from tests.support.rows import write_lines

LABELS = Labels(("negative", "positive"), {}, multi_label=False)
Reply = tuple[int, Any]


@contextmanager
def endpoint_that(answers: Callable[[list[str]], Reply]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server of the native dialect; its URL, and the requests that came."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body | {"authorization": self.headers["authorization"], "path": self.path})
            status, content = answers(body["inputs"])
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(raw)))
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that has seen enough
                self.end_headers()
                self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def good(inputs: list[str]) -> Reply:
    """Positive, whatever the text."""
    labels = [{"label": "positive", "score": 0.75}, {"label": "negative", "score": 0.25}]
    return 200, {"results": [{"labels": labels} for _ in inputs]}


def ask(url: str, inputs: list[str], dialect: str | None = None) -> list[Any]:
    with Endpoint(url, dialect, LABELS, key_env=None, timeout_s=5) as opened:
        return opened.answers(inputs)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Traffic with a column that classify would refuse, and a bad row."""
    lines = [{"text": text, "label": "from a log"} for text in sentences(300)]
    return write_lines(tmp_path / "traffic.jsonl", [*lines[:7], {"text": 7}, *lines[7:]])


def test_two_bundles(tmp_path: Path, bundle: Bundle, rows: Path) -> None:
    """Counted again from the labels that the two give by themselves."""
    other = make_bundle(tmp_path / "other", seed=3)
    result = run_limbeck("diff", other.folder, bundle.folder, "--data", rows, "--json", "--worst", 4)
    assert result.returncode == 4, result.stderr.decode()
    found = json.loads(result.stdout)
    texts = sentences(300)
    with Classifier(other.folder) as before, Classifier(bundle.folder) as after:
        scores = before.scores(texts), after.scores(texts)
    agree = scores[0].argmax(axis=1) == scores[1].argmax(axis=1)
    assert 0 < agree.sum() < 300
    assert (found["texts"], found["agreed"], found["bad_rows"]) == (300, agree.sum(), 1)
    differences = np.abs(scores[0] - scores[1]).max(axis=1)
    assert found["score_difference"]["largest"] == pytest.approx(differences.max(), abs=1e-6)
    assert found["score_difference"]["mean"] == pytest.approx(differences.mean(), abs=1e-6)
    lines = [number if number <= 7 else number + 1 for number in range(1, 301)]
    order = sorted(
        (-difference, line) for difference, line, same in zip(differences, lines, agree, strict=True) if not same
    )
    assert [one["row"] for one in found["worst"]] == [line for _, line in order[:4]]
    assert b"traffic.jsonl:8: column 'text': found int" in result.stderr


def test_a_bundle_agrees_with_itself(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "traffic.txt").write_text("\n".join(sentences(40)))
    result = run_limbeck("diff", bundle.folder, bundle.folder, "--data", tmp_path / "traffic.txt", "--min-agreement", 1)
    assert result.returncode == 0, result.stderr.decode()
    assert b"40 texts: 100.00% agree [91.24%\xe2\x80\x93100.00%]" in result.stdout
    assert b"Flips" not in result.stdout


def test_too_little_agreement_is_an_exit_code(bundle: Bundle, tmp_path: Path, rows: Path) -> None:
    other = make_bundle(tmp_path / "other", seed=3)
    result = run_limbeck("diff", other.folder, bundle.folder, "--data", rows, "--min-agreement", "0.999", "--limit", 50)
    assert result.returncode == 3
    assert b"is below --min-agreement 0.999" in result.stderr
    assert b"49 texts; 1 bad rows left out" in result.stdout
    assert b"Flips" in result.stdout
    assert b"Worst disagreements" in result.stdout


def test_bundles_of_several_labels_and_of_pairs(bundle: Bundle, tmp_path: Path) -> None:
    several, pairs = multi_label_bundle(bundle, tmp_path / "several"), pair_bundle(bundle, tmp_path / "pairs")
    strict = multi_label_bundle(bundle, tmp_path / "strict", thresholds={"positive": 0.9, "negative": 0.5})
    data = write_lines(tmp_path / "d.jsonl", [{"text": text, "text_pair": "the plot"} for text in sentences(50)])
    found = json.loads(run_limbeck("diff", several.folder, strict.folder, "--data", data, "--json").stdout)
    assert found["flips"]
    assert found["labels"]["positive"]["lost"] > 0
    table = run_limbeck("diff", several.folder, strict.folder, "--data", data).stdout.decode()
    assert "Flips by label" in table
    assert found["score_difference"]["largest"] == 0
    assert any(
        "(none)" in (flip["candidate"], flip["reference"]) or "," in flip["reference"] for flip in found["flips"]
    )
    found = json.loads(run_limbeck("diff", pairs.folder, pairs.folder, "--data", data, "--json").stdout)
    assert found["agreed"] == 50
    result = run_limbeck("diff", pairs.folder, bundle.folder, "--data", data)
    assert (result.returncode, b"one compares two texts" in result.stderr) == (1, True)


def test_an_endpoint_and_its_key(bundle: Bundle, rows: Path) -> None:
    os.environ["ENDPOINT_KEY"] = "sk-secret"
    try:
        with endpoint_that(good) as (url, asked):
            arguments = ("diff", url, bundle.folder, "--data", rows, "--json", "--api-key-env", "ENDPOINT_KEY")
            result = run_limbeck(*arguments)
    finally:
        del os.environ["ENDPOINT_KEY"]
    assert result.returncode == 4, result.stderr.decode()
    found = json.loads(result.stdout)
    assert {flip["reference"] for flip in found["flips"]} == {"positive"}
    assert {one["authorization"] for one in asked} == {"Bearer sk-secret"}
    assert {one["path"] for one in asked} == {"/v1/classify"}
    assert sum(len(one["inputs"]) for one in asked) == 300
    assert b"sk-secret" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        (("LABEL_0", "LABEL_1"), 1, "found LABEL_0, LABEL_1; expected some of the candidate's (negative, positive)"),
        (("positive", "mixed"), 4, "Warning: labels of the reference that the candidate does not have: mixed"),
    ],
)
def test_labels_that_are_not_the_candidates_are_told(
    bundle: Bundle, rows: Path, names: tuple[str, str], code: int, message: str
) -> None:
    labels = [{"label": names[0], "score": 0.75}, {"label": names[1], "score": 0.25}]
    with endpoint_that(lambda inputs: (200, {"results": [{"labels": labels} for _ in inputs]})) as (url, _):
        result = run_limbeck("diff", url, bundle.folder, "--data", rows)
    assert result.returncode == code
    assert message in result.stderr.decode()


def test_labels_in_common_are_looked_for_in_all_rows(bundle: Bundle, tmp_path: Path) -> None:
    """A server that tells the best label alone tells another after hundreds of rows."""
    texts = sentences(257)

    def answers(inputs: list[str]) -> Reply:
        return 200, {
            "results": [
                {"labels": [{"label": "mixed" if text == texts[256] else "positive", "score": 0.9}]} for text in inputs
            ]
        }

    data = write_lines(tmp_path / "d.jsonl", [{"text": text} for text in texts])
    with endpoint_that(answers) as (url, _):
        result = run_limbeck("diff", url, bundle.folder, "--data", data, "--json")
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads(result.stdout)["texts"] == 257
    assert b"the candidate does not have: mixed" in result.stderr


def test_what_detectors_report_of_parts_counts_by_the_highest() -> None:
    found = [[{"detection": "positive", "score": 0.97}, {"detection": "positive", "score": 0.1}], []]
    told = DIALECTS["detectors"](Labels(("positive",), {}, multi_label=True), "m").read(found)
    assert [(one.predicted, one.scores) for one in told] == [(("positive",), {"positive": 0.97}), ((), {})]


def test_a_text_that_the_endpoint_refuses_is_a_bad_row(bundle: Bundle, rows: Path) -> None:
    refused = sentences(300)[20]

    def answers(inputs: list[str]) -> Reply:
        return (422, {"error": "too long"}) if refused in inputs else good(inputs)

    with endpoint_that(answers) as (url, _):
        result = run_limbeck("diff", url, bundle.folder, "--data", rows, "--json")
    found = json.loads(result.stdout)
    assert (found["texts"], found["bad_rows"]) == (299, 2)
    assert b'traffic.jsonl:22: the endpoint refused it: status 422: {"error": "too long"}' in result.stderr


def test_what_may_pass_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE_S", 0.001)
    for status in (429, 500, 503):
        left = [3]

        def answers(inputs: list[str], status: int = status, left: list[int] = left) -> Reply:
            left[0] -= 1
            return (status, {}) if left[0] >= 0 else good(inputs)

        with endpoint_that(answers) as (url, asked):
            (answer,) = ask(url, ["a film"])
            assert (answer.predicted, len(asked)) == (("positive",), 4)
    with (
        endpoint_that(lambda _: (503, {"error": "loading"})) as (url, asked),
        pytest.raises(EndpointError, match=r'not answered in 6 attempts; the last: status 503: \{"error": "loading"\}'),
    ):
        ask(url, ["a film"])
    with pytest.raises(EndpointError, match="not answered in 6 attempts"):
        ask(url, ["a film"])  # nobody is there any more


def test_who_keeps_silent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and says nothing: with TLS there is no connection, without it no answer."""
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE_S", 0.001)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        for scheme, message in (("https", "no connection within 0.05 s"), ("http", "no answer within 0.05 s")):
            url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
            with (
                Endpoint(url, None, LABELS, key_env=None, timeout_s=0.05) as opened,
                pytest.raises(EndpointError, match=message),
            ):
                opened.answers(["a film"])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (404, {"error": "no model"}),
            "status 404.*no model.*expected the path of a classifier that speaks the dialect nat",
        ),
        ((401, {"error": "no key"}), "status 401"),
        ((200, {"results": []}), "found 0 answers, expected one for each of 1 texts"),
        ((200, {"predictions": []}), "its answer is none of the dialect native"),
        ((200, [1]), "its answer is none of the dialect native"),
        ((200, {"results": [{"labels": []}]}), "its answer is none of the dialect native"),
    ],
)
def test_an_endpoint_that_is_something_else(reply: Reply, message: str) -> None:
    with endpoint_that(lambda _: reply) as (url, _), pytest.raises(EndpointError, match=message):
        ask(url, ["a film"])


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://me:secret@h:1/x", "a user or password"),
        ("http://:secret@h:1", "a user or password"),
        ("http://h:1/x?key=secret", "a query"),
        ("http://h:1/x#secret", "a fragment"),
        ("http://me:secret@h:1/x?key=secret", "a user or password and a query"),
        ("http://", "no host"),
        ("http://h:99999/x", "no port from 1 to 65535"),
        ("http://h:secret", "no port from 1 to 65535"),
        ("http://[::1/secret", "or no URL at all"),
    ],
)
def test_a_url_that_is_none_is_told_without_its_secrets(url: str, found: str) -> None:
    with pytest.raises(EndpointError, match=f"the endpoint's URL: found .*{found}.*; expected http://HOST") as caught:
        Endpoint(url, "native", LABELS, key_env=None, timeout_s=5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two secrets", "a secret\nof lines", "secr\xe9t"])
def test_a_key_that_is_none_is_told_without_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", key)
    message = "the environment variable ENDPOINT_KEY, which --api-key-env names, holds no key"
    with pytest.raises(EndpointError, match=message) as caught:
        Endpoint("http://h:1", None, LABELS, key_env="ENDPOINT_KEY", timeout_s=5)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("status", [200, 401, 422])
def test_a_key_that_an_endpoint_repeats_is_not_told(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", "sk-secret")
    with (
        endpoint_that(lambda _: (status, {"error": "no such key: sk-secret"})) as (url, _),
        Endpoint(url, None, LABELS, key_env="ENDPOINT_KEY", timeout_s=5) as opened,
    ):
        try:
            (told,) = opened.answers(["a film"])
        except EndpointError as error:
            told = str(error)
    assert "no such key: (the key)" in str(told)
    assert "sk-secret" not in str(told)


@pytest.mark.parametrize("proxy", ["socks5://me:secret@h:9", "socks4://me:secret@h:9", "http://h:abc"])
def test_a_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)  # what httpx needs for SOCKS
    with pytest.raises(EndpointError, match=r"the proxy of the environment \(.*cannot be used: ") as caught:
        Endpoint("http://example.com", None, LABELS, key_env=None, timeout_s=5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "dialect", "asked"),
    [
        ("", "native", "/v1/classify"),
        ("/v1/models/m", "native", "/v1/models/m/classify"),
        ("/v1/models/m/versions/2", "native", "/v1/models/m/versions/2/classify"),
        ("/predict", "tei", "/predict"),
        ("/models/m", "huggingface", "/models/m"),
        ("/v2/models/m", "openinference", "/v2/models/m/infer"),
        ("/classify", "vllm", "/classify"),
        ("/v1/models/m:predict", "kserve", "/v1/models/m:predict"),
    ],
)
def test_the_path_says_the_dialect(path: str, dialect: str, asked: str) -> None:
    assert dialect_of(path) == dialect
    assert DIALECTS[dialect](LABELS).path(path) == asked


def test_labels_without_names_must_be_the_bundles() -> None:
    vllm, kserve = DIALECTS["vllm"](LABELS), DIALECTS["kserve"](LABELS)
    right = {"data": [{"index": 0, "label": "positive", "probs": [0.1, 0.9]}]}
    assert vllm.read(right)[0].scores == {"negative": 0.1, "positive": 0.9}
    with pytest.raises(EndpointError, match="it calls 'negative' what the bundle's order of labels calls 'positive'"):
        vllm.read({"data": [{"index": 0, "label": "negative", "probs": [0.1, 0.9]}]})
    with pytest.raises(EndpointError, match="it gives 3 scores without names, the bundle has 2 labels"):
        kserve.read({"predictions": [{"0": 0.1, "1": 0.2, "2": 0.7}]})
    assert kserve.read({"predictions": [{"1": 0.9, "0": 0.1}]})[0].predicted == ("positive",)
    assert kserve.read({"predictions": [{"bad": 0.9, "good": 0.1}]})[0].predicted == ("bad",)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{bundle}", "{bundle}", "--data", "nowhere.jsonl"], 1, "nowhere.jsonl: No such file or directory"),
        (["{bundle}", "{bundle}", "--data", "{empty}"], 1, "found no row that both can classify"),
        (["{bundle}", "nowhere", "--data", "{empty}"], 1, "nowhere"),
        (["{bundle}", "{bundle}", "--data", "{empty}", "--dialect", "tei"], 2, "belong to a URL"),
        (
            ["http://h:1", "{bundle}", "--data", "{empty}", "--dialect", "x"],
            2,
            "found 'x', expected one of native, tei",
        ),
        (["http://me:pw@h:1", "{bundle}", "--data", "{empty}"], 1, "found a user or password; expected http://HOST"),
        (
            ["http://h:1", "{bundle}", "--data", "{empty}", "--api-key-env", "NONE"],
            1,
            "NONE, which --api-key-env names",
        ),
        (
            ["http://h:1", "{bundle}", "--data", "{empty}", "--dialect", "openinference"],
            1,
            "expected a model in the path",
        ),
        (
            ["http://h:1", "{bundle}", "--data", "{empty}", "--model", "m"],
            1,
            "--model: found 'm', but the dialect native",
        ),
        (["http://h:1", "{bundle}", "--data", "{empty}", "--model", "modèle"], 1, "found 'modèle'; expected printable"),
        (
            ["http://h:1/api/v1/text/contents", "{bundle}", "--data", "{empty}"],
            1,
            "--model: not given, and the dialect detectors names the model in a header",
        ),
        (["http://h:1/classify", "{pairs}", "--data", "{empty}"], 1, "takes single texts, but the bundle compares two"),
    ],
)
def test_what_a_user_can_mend(bundle: Bundle, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    pairs = pair_bundle(bundle, tmp_path / "pairs").folder
    given = [word.format(bundle=bundle.folder, empty=tmp_path / "empty.jsonl", pairs=pairs) for word in arguments]
    result = run_limbeck("diff", *given)
    assert result.returncode == code, result.stderr.decode()
    assert message in " ".join(result.stderr.decode().replace("│", " ").split())
    assert b"Traceback" not in result.stderr


def test_ctrl_c_is_one_line(bundle: Bundle, rows: Path) -> None:
    """Nobody waits for the answers that are under way."""
    waiting, ended = threading.Event(), threading.Event()

    def answers(inputs: list[str]) -> Reply:
        waiting.set()
        ended.wait(200)
        return good(inputs)

    with endpoint_that(answers) as (url, _):
        process = start_limbeck("diff", url, bundle.folder, "--data", rows, "--timeout-s", 200)
        assert waiting.wait(60)
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=60)
        finally:
            ended.set()
    assert process.returncode == 130, told
    assert told.decode().splitlines()[-1] == "stopped"
    assert b"Traceback" not in told


def test_an_endpoint_that_is_closed_while_it_connects_waits_for_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection comes about after all others were ended."""
    connected, closed, ended = threading.Event(), threading.Event(), threading.Event()
    remember = Endpoint._remember

    def late(self: Endpoint, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            connected.set()
            assert closed.wait(60)
        remember(self, event, info)

    def answers(inputs: list[str]) -> Reply:
        ended.wait(200)
        return good(inputs)

    monkeypatch.setattr(Endpoint, "_remember", late)
    with endpoint_that(answers) as (url, _), ThreadPoolExecutor(1) as beside:
        try:
            opened = Endpoint(url, None, LABELS, key_env=None, timeout_s=200)
            found = beside.submit(opened.answers, ["a"])
            assert connected.wait(60)
            opened.close()
            closed.set()
            with pytest.raises(EndpointError, match="not answered"):
                found.result(60)
        finally:
            ended.set()
