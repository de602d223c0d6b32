"""The real process: it is started, asked, told to stop, and leaves nobody without an answer."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.helpers import changed, reference_scores
from tests.support.leaks import LEAKS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server(subprocess.Popen):
    """A service whose log is watched like those of all others, although the test reads it."""

    def communicate(self, *arguments: object, **named: object) -> tuple[str, str]:
        output, log = super().communicate(*arguments, **named)
        LEAKS.look(log)
        return output, log


@contextlib.contextmanager
def process(port: int, module: str = "service", **settings: object) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
    settings = {"workers": 1} | settings
    environment |= {f"LIMBECK_{name.upper()}": str(value) for name, value in settings.items()}
    running = Server(
        [sys.executable, "-m", module],
        env=environment | {"LIMBECK_PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def wait_until_ready(running: subprocess.Popen, url: str) -> None:
    deadline_s = time.monotonic() + 150
    while time.monotonic() < deadline_s:
        assert running.poll() is None, running.stderr.read()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        time.sleep(0.02)
    pytest.fail("the server did not become ready")


class InFlight:
    """A request whose head the server has begun to answer (100 Continue) and whose body it has not got yet."""

    def __init__(self, port: int, text: str) -> None:
        self.body = json.dumps({"inputs": text}).encode()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
            + f"Content-Length: {len(self.body)}\r\n\r\n".encode()
        )
        assert b"100 Continue" in self.socket.recv(1000)

    def finish(self) -> tuple[bytes, dict]:
        self.socket.sendall(self.body)
        answer = b"".join(iter(lambda: self.socket.recv(65536), b""))  # the server closes: it is going
        self.socket.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.splitlines()[0], json.loads(body)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_during_requests_answers_all_of_them_and_exits_with_0(tiny_bundle, workers):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(port, bundles=tiny_bundle.folder, workers=workers) as running:
        wait_until_ready(running, url)
        assert httpx.post(f"{url}/v1/classify", json={"inputs": "great film"}).status_code == 200
        requests = [InFlight(port, "great film") for _ in range(8)]
        running.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):  # until the port is closed, while the eight are still open
            while True:
                httpx.get(f"{url}/health/live")
        answers = [request.finish() for request in requests]
        _, log = running.communicate(timeout=60)
        assert running.returncode == 0, log
    expected = dict(zip(("negative", "positive"), reference_scores("great film"), strict=True))
    for status, answer in answers:
        assert status == b"HTTP/1.1 200 OK"
        scores = {label["label"]: label["score"] for label in answer["results"][0]["labels"]}
        assert scores == pytest.approx(expected, abs=1e-6)
    assert "Traceback" not in log


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bad_bundle_ends_the_process_with_one_line_and_1(tiny_bundle, tmp_path, workers):
    bad = changed(tiny_bundle, tmp_path / "bad", temperature=9.0)
    with process(free_port(), bundles=bad.folder, workers=workers) as running:
        _, log = running.communicate(timeout=60)
        assert running.returncode == 1
    errors = [line for line in log.splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert f"cannot load bundle {bad.folder}: GoldenMismatchError" in errors[0]
    assert "Traceback" not in log


def test_any_of_several_workers_answers_shows_the_metrics_of_all_and_can_be_replaced(tiny_bundle):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process(port, bundles=tiny_bundle.folder, workers=2) as running:
        wait_until_ready(running, url)
        for _ in range(6):  # each on a connection of its own: three for each worker
            assert httpx.post(f"{url}/v1/classify", json={"inputs": ["great film", "dull"]}).status_code == 200
        expected = {
            'limbeck_requests_total{dialect="native",model="tiny",route="/v1/classify",status="200",version="1"}': 6,
            'limbeck_inputs_total{model="tiny",version="1"}': 12,
            'limbeck_model_ready{model="tiny",variant="fp32",version="1"}': 1,
            "limbeck_workers": 2,
            "limbeck_worker_restarts_total": 0,
        }
        for _ in range(2):  # the next two workers in turn
            assert expected.items() <= samples(httpx.get(f"{url}/metrics").text).items()
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        deadline_s = time.monotonic() + 150
        expected["limbeck_worker_restarts_total"] = 1
        while not expected.items() <= samples(httpx.get(f"{url}/metrics").text).items():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0


def samples(metrics: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_the_supervisor_forks_before_anything_with_threads_is_imported():
    script = "import sys, service.server, limbeck; print({'numpy', 'onnxruntime', 'tokenizers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_a_wrong_setting_ends_the_process_with_one_line_and_2(tiny_bundle):
    with process(free_port(), bundles=tiny_bundle.folder, threads="many") as running:
        _, log = running.communicate(timeout=60)
        assert running.returncode == 2
    assert log.startswith("threads (LIMBECK_THREADS): ")
    assert len(log.splitlines()) == 1


def test_a_port_in_use_ends_the_process_with_1(tiny_bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with process(taken.getsockname()[1], bundles=tiny_bundle.folder) as running:
            _, log = running.communicate(timeout=60)
            assert running.returncode == 1
    assert "Address already in use" in log
    assert "LIMBECK_PORT" in log
    assert len(log.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="the scheduling policies of Linux")
@pytest.mark.parametrize("workers", [1, 2])
def test_packets_do_not_interrupt_the_model(tiny_bundle, workers):
    port = free_port()
    with process(port, bundles=tiny_bundle.folder, workers=workers) as running:
        wait_until_ready(running, f"http://127.0.0.1:{port}")
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        serving = [running.pid] if workers == 1 else [int(pid) for pid in children[:workers]]
        assert {os.sched_getscheduler(pid) for pid in serving} == {os.SCHED_BATCH}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells the limits of a process")
def test_as_many_files_may_be_open_as_connections(tiny_bundle):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    port = free_port()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))  # what the process is started with
    try:
        with process(port, bundles=tiny_bundle.folder, max_connections=700) as running:
            wait_until_ready(running, f"http://127.0.0.1:{port}")
            limits = Path(f"/proc/{running.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = int(next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3])
    assert 700 < found < 1024 or found == hard
