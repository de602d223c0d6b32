"""No key, text or header value reaches a log, whatever is asked and whatever fails; and the watch would see it."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.logs import Formatter
from tests.service.test_keys import FILE, SECRETS
from tests.service.test_server import free_port, process, wait_until_ready
from tests.support.faulty_server import MODEL_FAULT
from tests.support.leaks import LEAKS, secret

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
ADDRESS = "ada.unmentionable@example.org"
FAULTS = ("tokenizing", "writing", "sending", "receiving", "callback", "task", "masking", "awful")
HEADERS = {
    "X-Custom": secret("custom"),
    "Cookie": f"session={secret('cookie')}",
    "User-Agent": secret("agent"),
    "traceparent": secret("trace"),
    "X-Request-ID": f"not an id {secret('id')}",
}


def everything(url: str, port: int) -> None:
    """Requests of all kinds, good and bad, whose every part is secret."""
    keys = {name: {"Authorization": f"Bearer {key}"} for name, key in SECRETS.items()}
    text = f"{secret('text')} good {ADDRESS}"
    with httpx.Client(base_url=url, headers=HEADERS, timeout=30) as client:
        for word in ("fine", *FAULTS):
            for path, body in (
                ("/v1/classify", {"inputs": f"{text} {word}"}),
                ("/predict", {"inputs": f"{text} {word}"}),
            ):
                with contextlib.suppress(httpx.TransportError):  # some faults cost the connection
                    client.post(path, json=body, headers=keys["full"])
        client.headers.update(keys["full"])
        for path in ("/v1/classify", "/predict", "/", "/classify", "/v2/models/tiny/infer", "/api/v1/text/contents"):
            client.post(path, json={"inputs": {text: text}, "input": 1, secret("field"): text})
            client.post(path, content=text.encode(), headers={"Content-Type": "application/json"})
            client.post(path, content=text.encode(), headers={"Content-Type": secret("media-type")})
            client.post(path, json={"inputs": text}, headers={"Authorization": f"Bearer {secret('guess')}"})
            client.post(path, json={"inputs": text}, headers={"Authorization": f"Basic {SECRETS['full']}"})
        for header in ("X-Request-Priority", "X-Request-Timeout-Ms", "detector-id", "Content-Encoding"):
            client.post("/v2/models/tiny/infer", json={}, headers={header: secret("option")})
            client.post("/v1/classify", json={"inputs": text}, headers={header: secret("option")})
        for _ in range(4):
            client.post("/v1/classify", json={"inputs": text}, headers=keys["slow"])
        client.post(f"/v1/models/{secret('model')}/classify", json={"inputs": text})
        client.get(f"/{secret('path')}?key={secret('query')}")
        client.post("/v1/admin/models/tiny/load")
        client.post("/v1/classify", content=b" " * 5000, headers={"Content-Type": "application/json"})
    for noise in (
        f"{text}\r\n\r\n",
        f"POST /v1/classify HTTP/1.1\r\nAuthorization: Bearer {SECRETS['full']}\r\n{text}\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(noise.encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)


def test_nothing_secret_is_logged_whatever_fails(tiny_bundle, tmp_path):
    """At the lowest level, with texts in the request log, in a service in which everything fails that can."""
    keys, port = tmp_path / "keys.toml", free_port()
    keys.write_text(FILE)
    settings = {
        "bundles": tiny_bundle.folder, "keys_file": keys, "admin": "true", "log_level": "debug", "request_log": "true",
        "log_texts": 1, "max_body_bytes": 4096, "workers": 1, "port": port,
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
    environment |= {f"LIMBECK_{name.upper()}": str(value) for name, value in settings.items()}
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as output, err.open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faulty_server"], cwd=ROOT, env=environment, stdout=output, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(running, url)
            everything(url, port)
            keys.write_text(f"{SECRETS['full']} = not a file of keys")
            os.kill(running.pid, signal.SIGHUP)
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
        finally:
            running.kill()
            running.wait()
    log, lines = err.read_text(), out.read_text().splitlines()
    LEAKS.look(log)
    for line in lines:
        LEAKS.look_at_request(line)
        assert ADDRESS not in line
    told = [text for line in lines for text in json.loads(line).get("texts", ())]
    assert len(lines) > 50
    assert told, "masked texts are what an operator has asked for"
    # what an operator needs of a fault is there: what failed, where, and for what reason where that quotes nothing
    for what in (
        "tokenization failed", "in tokenize", "unexpected error on POST /v1/classify",
        "unexpected error on POST /predict",
        "KeyError", "which led to", "an answer could not be written", "in begin", "Exception in callback",
        "Task exception was never retrieved", MODEL_FAULT, "the keys read before stay in force",
        "a text could not be masked",
    ):  # fmt: skip
        assert what in log, what


def test_a_traceback_tells_kinds_and_places_alone():
    try:
        try:
            raise OSError(28, "No space left on device", secret("file"))
        except OSError as error:
            raise ExceptionGroup(secret("group"), [ValueError(secret("value")), KeyError()]) from error
    except ExceptionGroup as error:
        told = Formatter().formatException((type(error), error, error.__traceback__))
    assert "unmentionable" not in told.replace('secret("', "")
    for part in ("OSError: No space left on device\n", "ExceptionGroup\n", "ValueError\n", "KeyError", f'"{__file__}"'):
        assert part in told


@pytest.mark.parametrize("level", ["DEBUG", "CRITICAL"])
@pytest.mark.parametrize("said", [SECRETS["full"], f"Bearer {secret('key')}", secret("header"), "read: a good movie"])
def test_the_watch_sees_records_of_any_level(caplog, level, said):
    caplog.set_level("ERROR")
    log = logging.getLogger("service.engine.worker")
    with LEAKS.expected() as found:
        log.log(logging.getLevelName(level), "it is %s", said)
        log.log(logging.getLevelName(level), "nothing")
    assert len(found) == 1
    assert [record.getMessage() for record in caplog.records] == (
        [f"it is {said}", "nothing"] if level == "CRITICAL" else []
    )


LEAKING = f"""
import logging, subprocess, sys

def test_record():
    logging.getLogger("service").debug("{secret("key")}")

def test_server():
    code = "import sys; print('2026-01-01 00:00:00,000 INFO 7 service.app: {secret("text")}', file=sys.stderr)"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_request_log():
    print('{{"time":"2026-01-01T00:00:00Z","request_id":"1","route":"/","key":"{secret("key")}"}}')

def test_texts_that_are_not_masked():
    print('{{"time":"2026-01-01T00:00:00Z","request_id":"1","texts":["a good movie", "a@example.org"]}}')

def test_innocent():
    print('{{"time":"2026-01-01T00:00:00Z","request_id":"1","texts":["a good movie", "[EMAIL]"]}}')
    print("a good movie")
    logging.getLogger("service").debug("innocent")
"""


def test_a_test_whose_service_leaks_fails(pytester, capsys):
    pytester.makepyfile(LEAKING)
    result = pytester.runpytest_inprocess("-p", "tests.conftest", "-p", "no:cacheprovider")
    capsys.readouterr()  # or this test would fail like those in it
    result.assert_outcomes(failed=4, passed=1)
    assert "test_innocent" not in result.stdout.str()


def test_the_watch_reads_what_a_test_reads_of_its_server(tiny_bundle, monkeypatch):
    with (
        LEAKS.expected() as found,
        process(free_port(), bundles=tiny_bundle.folder, threads=secret("setting")) as running,
    ):
        running.communicate(timeout=60)
    assert found
