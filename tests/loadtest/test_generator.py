"""The process that sends: which errors it tells apart, how it uses connections, and that it admits being late."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
import urllib.request
from dataclasses import replace
from multiprocessing import util

import numpy as np
import pytest

from loadtest import histogram
from loadtest.arrivals import Arrivals, times
from loadtest.errors import GeneratorError
from loadtest.fleet import Fleet, Step
from loadtest.generator import Generator
from loadtest.messages import CLOSED, GOOD, INVALID, Plan, Tick
from loadtest.outcome import Collector, Outcome
from tests.loadtest import slow_server as server
from tests.loadtest.slow_server import Behavior, slow_server
from tests.loadtest.test_truth import settings


def run(port: int, seconds: int = 1, rate: float = 100, busy_s: float = 0.0, **changes: object) -> Outcome:
    """One process's part, in this process; `busy_s`: every 50 ms the loop is held up that long."""
    collector = Collector(seconds)

    async def generate() -> None:
        async def hold_up() -> None:
            while True:
                time.sleep(busy_s)
                await asyncio.sleep(0.05)

        generator = Generator(settings(port, **changes), lambda tick: collector.add(0, tick))
        holding = asyncio.create_task(hold_up()) if busy_s else None
        start_s = time.monotonic() + 0.05
        await generator.run(Plan(start_s, 0.0, seconds, rate, 0, Arrivals.CONSTANT, 0, 0, 1))
        if holding:
            holding.cancel()
        generator.close()

    asyncio.run(generate())
    return collector.outcome(rate, None, 1)


def connections(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/connections") as answer:
        return int(answer.read())


def test_refusals_broken_connections_and_nonsense_are_errors_of_their_kinds() -> None:
    behavior = Behavior(answers=[server.GOOD, server.BUSY, server.CUT, b"nonsense\r\n\r\n"])
    with slow_server(behavior) as port:
        outcome = run(port)
    assert outcome.requests == 100
    assert outcome.errors == {"status 429": 25, CLOSED: 25, INVALID: 25}
    assert outcome.samples == 25
    assert outcome.error_share.value == 0.75
    assert outcome.error_share.low < 0.75 < outcome.error_share.high
    with slow_server(Behavior(answers=[None])) as port:
        assert run(port).errors == {CLOSED: 100}


def test_nobody_listens() -> None:
    with slow_server(Behavior()) as port:
        pass
    outcome = run(port)
    assert outcome.errors == {"no connection (refused)": 100}
    assert outcome.latency_ms["p99"].value is None


def test_connections_are_used_again_or_not() -> None:
    with slow_server(Behavior()) as port:
        kept = run(port)
        before = connections(port)
        fresh = run(port, reuse=False)
        after = connections(port)
    assert before < 20
    assert after - before == 101
    assert kept.errors == fresh.errors == {}


def test_a_connection_that_the_server_closes_is_replaced() -> None:
    with slow_server(Behavior(answers=[server.LAST])) as port:
        assert run(port).errors == {}
        assert connections(port) >= 101
    # closed in the very moment when the next request leaves
    with slow_server(Behavior(idle_s=0.01)) as port:
        outcome = run(port)
    assert outcome.errors == {}
    assert outcome.requests == 100


def test_no_more_connections_than_allowed() -> None:
    with slow_server(Behavior([0.1])) as port:
        outcome = run(port, rate=40, max_connections=2)
        assert connections(port) == 3
    assert outcome.errors == {}
    assert outcome.requests == 40


def test_a_generator_that_is_held_up_says_so() -> None:
    with slow_server(Behavior()) as port:
        late = run(port, busy_s=0.2)
    assert late.generator_limited
    assert "the load generator was the limit" in late.generator_note
    assert late.lag_p99_ms > 100
    assert late.latency_ms["p99"].value >= late.lag_p99_ms  # the delay is not hidden in the latency


def test_constant_and_poisson_times() -> None:
    def first(count: int, arrivals: Arrivals, **options: int) -> np.ndarray:
        found = times(arrivals, 100.0, 7, **options)
        return np.array([next(found) for _ in range(count)])

    assert first(50, Arrivals.CONSTANT) == pytest.approx(np.arange(50) / 100)
    parts = [first(25, Arrivals.CONSTANT, share=share, shares=2) for share in range(2)]
    assert np.sort(np.concatenate(parts)) == pytest.approx(np.arange(50) / 100)
    # the parts of a Poisson process together have its rate, and exponential gaps
    both = np.sort(np.concatenate([first(10_000, Arrivals.POISSON, share=share, shares=2) for share in range(2)]))
    gaps = np.diff(both[both < 190])
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.03)


def test_several_processes_share_a_load_and_may_become_more() -> None:
    with slow_server(Behavior([0.02])) as port, Fleet(settings(port), 1) as fleet:
        seen: list[tuple[int, Tick]] = []
        step = Step(2, 0.5, rate=100, arrivals=Arrivals.CONSTANT)
        alone = fleet.measure(step, lambda *_: None)
        fleet.grow(3)
        together = fleet.measure(step, lambda process, tick: seen.append((process, tick)))
    assert alone.requests == together.requests == 200
    assert together.processes == 3
    counts = [sum(tick.outcomes.get(GOOD, 0) for number, tick in seen if number == process) for process in range(3)]
    assert sorted(counts) == [66, 67, 67]
    assert sum(histogram.counts_of(tick.latency).sum() for _, tick in seen) == 200


def test_a_process_that_is_killed_ends_the_test() -> None:
    with slow_server(Behavior()) as port, Fleet(settings(port), 1) as fleet:
        step = Step(30, 0.0, rate=10)

        def kill(process: int, tick: Tick) -> None:
            fleet._members[0][0].kill()

        with pytest.raises(GeneratorError, match="ended"):
            fleet.measure(replace(step, seconds=30), kill)


def test_ctrl_c_while_a_process_starts_leaves_it_whole(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second thread may take the signal whatever the main one blocks; the new process must still be told all."""
    spawn, ended = util.spawnv_passfds, threading.Event()

    def interrupted(*arguments: object) -> int:
        pid: int = spawn(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return pid

    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        with slow_server(Behavior()) as port:
            monkeypatch.setattr(util, "spawnv_passfds", interrupted)
            with pytest.raises(KeyboardInterrupt):
                Fleet(settings(port), 1)
    finally:
        ended.set()
        other.join()
    for child in multiprocessing.active_children():  # its pipe is closed
        child.join(20)
        assert child.exitcode == 0
    assert "Traceback" not in capfd.readouterr().err
