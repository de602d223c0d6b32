"""Real processes under the supervisor, with workers that need no model."""

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="several workers need fork")


class Service:
    def __init__(self, running: subprocess.Popen) -> None:
        self.running = running
        self.port = int(running.stdout.readline())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, letter: bytes) -> str:
        with self.connect() as connection:
            connection.sendall(letter)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def who(self) -> tuple[int, int, bool]:
        """Slot and process of the worker that answers, and whether it says that the service is open."""
        slot, process, opened = map(int, self.ask(b"h").split())
        return slot, process, bool(opened)

    def until_open(self) -> None:
        deadline_s = time.monotonic() + 30
        while not self.who()[2]:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def metrics(self) -> dict[str, float]:
        lines = [line for line in self.ask(b"m").splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def end(self) -> tuple[int, str]:
        _, log = self.running.communicate(timeout=30)
        return self.running.returncode, log


@contextlib.contextmanager
def service(workers: int = 2, **environment: str) -> Iterator[Service]:
    command = [sys.executable, "-m", "tests.support.echo_workers", str(workers)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        yield Service(running)
    finally:
        running.kill()
        running.communicate()


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_connections_are_spread_evenly():
    with service(workers=3) as running:
        running.until_open()
        connections = [running.connect() for _ in range(30)]
        for connection in connections:
            connection.sendall(b"h")
        slots = collections.Counter(connection.recv(100).split()[0] for connection in connections)
        for connection in connections:
            connection.close()
        assert slots == {b"0": 10, b"1": 10, b"2": 10}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_every_worker_finish_and_the_status_is_0(number):
    with service() as running:
        running.until_open()
        connections = [running.connect() for _ in range(6)]
        for connection in connections:
            connection.sendall(b"s")
        running.running.send_signal(number)
        answers = [connection.recv(100).split()[0] for connection in connections]
        for connection in connections:
            connection.close()
        status, _ = running.end()
        assert sorted(answers) == [b"0", b"0", b"0", b"1", b"1", b"1"]
        assert status == 0


def test_a_second_signal_ends_at_once():
    with service(HANG="1") as running:
        running.until_open()
        processes = {running.who()[1] for _ in range(2)}
        running.running.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):  # the port is closed when the first signal has been seen
            while True:
                running.connect().close()
        began_s = time.monotonic()
        running.running.send_signal(signal.SIGTERM)
        status, _ = running.end()
        assert status == 0
        assert time.monotonic() - began_s < 20  # the workers would take a minute
        assert all(map(gone, processes))


def test_a_worker_that_dies_is_replaced_and_its_counters_stay():
    with service() as running:
        running.until_open()
        before = {slot: process for slot, process, _ in (running.who() for _ in range(4))}
        answers = 'limbeck_requests_total{dialect="",model="",route="/",status="200",version=""}'
        answered = running.metrics()[answers]
        assert running.metrics()["limbeck_workers"] == 2
        assert running.ask(b"d") == ""
        survivors = {running.who()[1] for _ in range(4)}  # nobody is refused meanwhile
        assert len(survivors - set(before.values())) <= 1
        wait_until(lambda: running.metrics()["limbeck_workers"] == 2)
        after = {slot: process for slot, process, _ in (running.who() for _ in range(4))}
        metrics = running.metrics()
        assert sorted(after) == [0, 1]
        assert len(set(after.values()) & set(before.values())) == 1
        assert metrics["limbeck_worker_restarts_total"] == 1
        assert metrics[answers] >= answered + 8
        buckets = 'limbeck_request_duration_seconds_bucket{le="0.001",route="/"}'
        assert (
            metrics[buckets] == metrics['limbeck_requests_total{dialect="",model="",route="/",status="200",version=""}']
        )


def test_workers_that_die_again_and_again_end_the_service():
    with service() as running:
        running.until_open()
        while running.running.poll() is None:
            with contextlib.suppress(OSError):
                running.ask(b"d")
        status, log = running.end()
        assert status == 1
        assert "too many" in log
        assert log.count("ended by signal 9; a new one starts") == 5


def test_a_worker_that_cannot_start_ends_the_service_without_another_try():
    with service(REFUSE="1") as running:
        status, log = running.end()
        assert (status, log) == (1, "")


def test_a_worker_that_says_so_later_is_tried_again_while_the_others_go_on():
    """A bundle that was harmed since the start must not end a service that has it in memory."""
    with service() as running:
        running.until_open()
        for _ in range(7):  # more often than workers may die
            running.ask(b"n")
            assert running.who()[1] == running.who()[1], "the one that is left answers all"
            wait_until(lambda: len({running.who()[0] for _ in range(2)}) == 2)
        assert running.running.poll() is None


def test_workers_do_not_outlive_a_supervisor_that_is_killed():
    with service() as running:
        running.until_open()
        processes = {running.who()[1] for _ in range(2)}
        assert len(processes) == 2
        running.running.kill()
        running.end()
        wait_until(lambda: all(map(gone, processes)))
