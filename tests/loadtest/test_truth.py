"""What is reported of servers whose delays are known: in a clock that only the test moves, and in real time."""

import asyncio
import itertools
import math
import random
import shutil
import subprocess
from collections.abc import Callable

import pytest

from loadtest.arrivals import Arrivals
from loadtest.fleet import Fleet, Step
from loadtest.messages import Settings
from loadtest.outcome import SHARES, Outcome
from tests.loadtest.slow_server import Behavior, slow_server
from tests.loadtest.virtual import BUSY, GOOD, REQUEST, Server, measured

STRATA = 4000


def delays_s(scale_s: float) -> list[float]:
    """Three quarters of `scale_s`, and an exponential part of that mean, evenly over its quantiles."""
    found = [scale_s * (0.75 - math.log(1 - (place + 0.5) / STRATA)) for place in range(STRATA)]
    random.Random(3).shuffle(found)
    return found


def analytic_ms(share: float, scale_s: float) -> float:
    return 1000 * scale_s * (0.75 - math.log(1 - share))


def serving(
    delays: list[float], answers: list[bytes] | None = None, stall_s: tuple[float, float] | None = None
) -> Callable[[], asyncio.Protocol]:
    in_turn, answering = itertools.cycle(delays), itertools.cycle(answers or [GOOD])
    return lambda: Server(in_turn, answering, stall_s)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("arrivals", Arrivals)
def test_percentiles_are_those_of_the_delays(arrivals: Arrivals, reuse: bool) -> None:
    outcome = measured(serving(delays_s(0.04)), 20, rate=200, arrivals=arrivals, warm_up_s=2, reuse=reuse)
    assert outcome.errors == {}
    assert outcome.samples == outcome.requests == pytest.approx(4000, abs=4 * math.sqrt(4000))
    assert outcome.rate.value == pytest.approx(200, rel=0.05)
    assert outcome.lag_max_ms == pytest.approx(0, abs=0.01)
    for name, share in SHARES.items():
        figure = outcome.latency_ms[name]
        assert figure.value == pytest.approx(analytic_ms(share, 0.04), rel=0.05 if share > 0.99 else 0.02), name
        assert figure.low <= analytic_ms(share, 0.04) * 1.01
        assert figure.high is None or figure.high >= analytic_ms(share, 0.04) * 0.99
    assert outcome.mean_ms == pytest.approx(1.75 * 40, rel=0.01)


def test_a_stall_is_charged_for_everyone_who_would_have_waited() -> None:
    """Two of eight seconds: the latencies of a quarter of the requests fall evenly from 2,040 to 40 ms."""
    stalling = serving([0.04], stall_s=(1013.0, 1015.0))
    outcome = measured(stalling, 8, rate=100, arrivals=Arrivals.CONSTANT)
    assert outcome.requests == 800
    assert outcome.errors == {}
    for name in ("p90", "p99", "p99.9"):
        expected_ms = 40 + 2000 * (SHARES[name] - 0.75) / 0.25
        assert outcome.latency_ms[name].value == pytest.approx(expected_ms, rel=0.01), name
    assert outcome.max_ms == pytest.approx(2040, rel=0.01)
    assert outcome.latency_ms["p50"].value == pytest.approx(40, rel=0.01)
    assert not outcome.generator_limited
    assert [moment.answers_per_s for moment in outcome.timeline][3:5] == [pytest.approx(4, abs=1), 0]
    # how long the stall lasts is one event: the interval says that one run knows little of it
    assert outcome.latency_ms["p90"].low < 50


def test_a_closed_loop_hides_the_same_stall() -> None:
    outcome = measured(serving([0.04], stall_s=(1013.0, 1015.0)), 8, clients=4)
    assert outcome.max_ms == pytest.approx(2020, abs=25)
    assert outcome.latency_ms["p99"].value == pytest.approx(40, rel=0.01)
    assert outcome.rate.value == pytest.approx(4 / 0.04 * 6 / 8, rel=0.02)
    assert (outcome.rate_asked, outcome.clients, outcome.lag_p99_ms) == (None, 4, None)


def test_a_server_that_is_too_slow_is_charged_for_its_queue() -> None:
    """Two connections of 100 ms hold 20 a second; 40 arrive: number n waits n / 20 - n / 40 seconds."""
    outcome = measured(serving([0.1]), 10, rate=40, arrivals=Arrivals.CONSTANT, max_connections=2, timeout_s=60)
    assert outcome.errors == {}
    assert outcome.rate.value == pytest.approx(20, rel=0.02)
    assert outcome.max_ms == pytest.approx(1000 * (400 / 20 - 400 / 40) + 100, rel=0.02)
    assert outcome.latency_ms["p50"].value == pytest.approx(1000 * (200 / 20 - 200 / 40) + 100, rel=0.03)
    assert not outcome.generator_limited


def test_refusals_do_not_make_latencies_look_better_and_silence_counts() -> None:
    """Every fourth is refused at once, every eighth has no answer before a second is over."""
    server = serving([0.2, 0.2, 0.0, 30.0, 0.2, 0.2, 0.0, 0.2], [GOOD, GOOD, BUSY, GOOD] * 2)
    outcome = measured(server, 10, rate=80, arrivals=Arrivals.CONSTANT, timeout_s=1.0)
    assert outcome.errors == {"no answer in time": 100, "status 429": 200}
    assert outcome.samples == 600
    assert outcome.latency_ms["p50"].value == pytest.approx(200, rel=0.01)
    assert outcome.latency_ms["p90"].value == pytest.approx(1050, rel=0.06)  # looked for every 100 ms
    assert outcome.error_share.value == 0.375


def test_a_generator_that_is_stopped_is_told_from_a_server_that_is_slow() -> None:
    """Half a second of every second: a quarter of a second late in the mean of that half."""
    outcome = measured(serving([0.01]), 8, rate=100, arrivals=Arrivals.CONSTANT, stops_s=0.5)
    assert outcome.generator_limited
    assert outcome.lag_max_ms == pytest.approx(500, rel=0.02)
    assert outcome.lag_p50_ms <= 20
    assert outcome.latency_ms["p99"].value >= outcome.lag_p99_ms  # its delay is not hidden


def settings(port: int, **changes: object) -> Settings:
    given = {
        "address": ("127.0.0.1", port),
        "server_name": None,
        "requests": (REQUEST,),
        "timeout_s": 10.0,
        "max_connections": 1024,
        "reuse": True,
    }
    return Settings(**(given | changes))


def real(behavior: Behavior, step: Step) -> Outcome:
    """Measure in real time; skip where other programs have the processors."""
    with slow_server(behavior) as port, Fleet(settings(port), 2) as fleet:
        outcome = fleet.measure(step, lambda *_: None)
    if outcome.lag_p99_ms is not None and outcome.lag_p99_ms > 50:
        pytest.skip(f"the machine is too busy: requests left {outcome.lag_p99_ms:.0f} ms late")
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("arrivals", Arrivals)
def test_in_real_time_percentiles_are_those_of_the_delays(arrivals: Arrivals) -> None:
    outcome = real(Behavior(delays_s(0.4)), Step(20, 2.0, rate=100, arrivals=arrivals))
    assert outcome.errors == {}
    for name in ("p50", "p90", "p99"):
        assert outcome.latency_ms[name].value == pytest.approx(analytic_ms(SHARES[name], 0.4), rel=0.05), name


@pytest.mark.slow
def test_in_real_time_a_stall_is_charged() -> None:
    """The process is stopped: it neither reads nor accepts."""
    stalling = Behavior([0.04], stall_after_s=3.0, stall_s=2.0)
    outcome = real(stalling, Step(8, 1.0, rate=100, arrivals=Arrivals.CONSTANT))
    for name in ("p90", "p99", "p99.9"):
        expected_ms = 40 + 2000 * (SHARES[name] - 0.75) / 0.25
        assert outcome.latency_ms[name].value == pytest.approx(expected_ms, rel=0.05), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_closed_loop_finds_the_rate_that_wrk_finds() -> None:
    with slow_server(Behavior([0.2])) as port:
        command = ["wrk", "-t1", "-c40", "-d10s", "--latency", f"http://127.0.0.1:{port}/"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with Fleet(settings(port), 1) as fleet:
            outcome = fleet.measure(Step(10, 1.0, clients=40), lambda *_: None)
    words = printed.split()
    wrk_rate = float(words[words.index("Requests/sec:") + 1])
    wrk_p50_ms = float(words[words.index("50%") + 1].removesuffix("ms"))
    assert outcome.rate.value == pytest.approx(wrk_rate, rel=0.05)
    assert outcome.latency_ms["p50"].value == pytest.approx(wrk_p50_ms, rel=0.05)
