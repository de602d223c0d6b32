import itertools
import math
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.serving.closed_loop import parse
from benchmarks.serving.open_loop import OpenLoop, complete, http_request, poisson, quantile

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = http_request("/classify", "here", b"{}")


@contextmanager
def fake_server(answer: Callable[[], bytes | None]) -> Iterator[int]:
    """A server that calls `answer` for each request; None closes the connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                found = answer()
                if found is None:
                    return
                self.request.sendall(found)

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        request_queue_size = 64

    with Threads(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_latency_counts_from_the_scheduled_time_when_the_server_cannot_keep_up() -> None:
    service_s, lock = 0.01, threading.Lock()

    def one_at_a_time() -> bytes:
        with lock:
            time.sleep(service_s)
        return OK

    rate, seconds = 200.0, 0.4  # twice what the server can do
    with fake_server(one_at_a_time) as port:
        loop = OpenLoop("127.0.0.1", port, [REQUEST], grace_s=30)
        found = loop.run(rate, seconds, seed=3)
    # a queue with one server: no n-th answer before n services are over, whatever was in flight
    arrivals = list(poisson(rate, seconds, 3))
    finished = list(itertools.accumulate(arrivals, lambda end, at: max(end, at) + service_s, initial=0.0))[1:]
    least = sorted(end - at for end, at in zip(finished, arrivals, strict=True))
    assert found.answers == len(arrivals)
    assert found.errors == 0
    assert sum(loop.latencies_s) >= sum(least)
    assert found.p99_ms >= 500 * max(least)
    assert found.per_second < 0.8 * rate


def test_unanswered_requests_are_errors_and_keep_their_latency() -> None:
    answers = iter([OK, OK])
    stop = threading.Event()

    def then_silence() -> bytes | None:
        found = next(answers, None)
        if found is None:
            stop.wait(10)
        return found

    with fake_server(then_silence) as port:
        loop = OpenLoop("127.0.0.1", port, [REQUEST], max_connections=4, grace_s=0.5)
        found = loop.run(100, 0.2)
        stop.set()
    asked = len(list(poisson(100, 0.2, 0)))
    assert found.answers == 2
    assert found.errors == asked - 2
    assert len(loop.latencies_s) == asked
    assert found.p99_ms >= 500


def test_answers_are_told_apart_by_status() -> None:
    kinds = itertools.cycle([OK, b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n"])
    with fake_server(lambda: next(kinds)) as port:
        loop = OpenLoop("127.0.0.1", port, [REQUEST])
        loop.connect(2)
        loop.run(100, 0.2)
    asked = len(list(poisson(100, 0.2, 0)))
    counts = {status: len(latencies) for status, latencies in loop.by_status.items()}
    assert counts == {200: (asked + 1) // 2, 429: asked // 2}


def test_refusals_and_broken_connections_are_errors() -> None:
    kinds = itertools.cycle([b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", None])
    with fake_server(lambda: next(kinds)) as port:
        found = OpenLoop("127.0.0.1", port, [REQUEST]).run(100, 0.2)
    assert found.answers == 0
    assert found.errors == len(list(poisson(100, 0.2, 0)))


def test_poisson_times_have_the_rate_and_are_exponential() -> None:
    times = np.array(list(poisson(1000, 20, 7)))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as an exponential's


def test_quantile_is_numpys_inverted_cdf() -> None:
    values = sorted(np.random.default_rng(0).normal(size=137).tolist())
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        assert quantile(values, share) == np.quantile(values, share, method="inverted_cdf")
    assert math.isnan(quantile([], 0.5))


@pytest.mark.parametrize(
    "whole",
    [
        OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK.replace(b"Length", b"LENGTH"),
    ],
)
def test_an_answer_is_complete_with_its_last_byte(whole: bytes) -> None:
    assert complete(whole) == 200
    assert all(complete(whole[:end]) is None for end in range(len(whole)))


def test_wrk_figures_count_refusals_as_errors() -> None:
    printed = """Running 2s test @ http://127.0.0.1:8000/
  2 requests in 2.00s

{"answers": 1000, "seconds": 2.0, "p50_ms": 1.5, "p99_ms": 9.25, "bad_status": 100, "broken": 3}
"""
    found = parse(printed)
    assert (found.per_second, found.answers, found.errors) == (450, 900, 103)
    assert (found.p50_ms, found.p99_ms) == (1.5, 9.25)
    nothing = parse('{"answers": 0, "seconds": 2.0, "p50_ms": 0, "p99_ms": 0, "bad_status": 0, "broken": 8}')
    assert nothing.errors == 8
    assert math.isnan(nothing.p99_ms)
