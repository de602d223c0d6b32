"""Objectives and the search for the highest rate, on servers that exist as formulas only."""

import dataclasses

import numpy as np
import pytest

from loadtest import objective
from loadtest.capacity import capacity
from loadtest.errors import ObjectiveError
from loadtest.histogram import new_histogram, record
from loadtest.messages import GOOD, Tick
from loadtest.objective import Reason, Verdict
from loadtest.outcome import Collector, Outcome
from loadtest.search import find_maximum


def tick_of(latencies_s: np.ndarray, errors: int = 0, lag_s: float = 0.0, second: int = 0) -> Tick:
    """One second in which that happened."""
    latency, lag = new_histogram(), new_histogram()
    for one in latencies_s:
        record(latency, one)
        record(lag, lag_s)
    outcomes = {GOOD: len(latencies_s)} | ({"status 429": errors} if errors else {})
    return Tick(second, latency.encode(), lag.encode(), outcomes, len(latencies_s), last=True)


def outcome_of(latencies_s: np.ndarray, errors: int = 0, lag_s: float = 0.0) -> Outcome:
    collector = Collector(1)
    collector.add(0, tick_of(latencies_s, errors, lag_s))
    return collector.outcome(100, None, 1)


def test_objectives() -> None:
    found = objective.parse("p99<50ms")
    assert (found.limits_ms, found.errors, found.samples) == ({0.99: 50.0}, 0.001, 1000)
    found = objective.parse(" p99.9 <= 1.5s , p50<900us, errors < 2% ")
    assert (found.limits_ms, found.errors, found.samples) == ({0.999: 1500.0, 0.5: 0.9}, 0.02, 10_000)


@pytest.mark.parametrize(
    "text",
    ["", "p99", "p99<50", "p99>50ms", "p100<1ms", "p0<1ms", "errors<1%", "p99<0ms", "p99<5ms,", "errors<1%,errors<2%"],
)
def test_objectives_that_cannot_be_understood(text: str) -> None:
    with pytest.raises(ObjectiveError, match=r"--slo: found .*, expected"):
        objective.parse(text)


def test_what_a_step_fails_by_is_told_apart() -> None:
    goal = objective.parse("p99<50ms,errors<1%")
    fast, slow = np.full(1000, 0.02), np.concatenate([np.full(980, 0.02), np.full(20, 0.3)])
    assert goal.judge(outcome_of(fast)) == Verdict(Reason.HELD, "")
    assert goal.judge(outcome_of(fast, errors=5)).held
    late = goal.judge(outcome_of(slow))
    assert (late.reason, late.detail) == (Reason.LATENCY, "p99 300.0 ms, allowed 50 ms")
    refused = goal.judge(outcome_of(slow, errors=100))
    assert refused.reason is Reason.ERRORS
    assert "9.09% errors (status 429: 100), allowed 1.00%; p99 300" in refused.detail
    assert goal.judge(outcome_of(slow, lag_s=0.2)).reason is Reason.GENERATOR
    assert goal.judge(outcome_of(fast, lag_s=0.015)).held  # late, and yet good enough
    assert goal.judge(outcome_of(np.array([]), errors=1)).reason is Reason.ERRORS
    nothing = dataclasses.replace(goal, errors=1.0)
    assert nothing.judge(outcome_of(np.array([]), errors=1)).reason is Reason.LATENCY


@pytest.mark.parametrize("start", [1.0, 50.0, 4000.0])
@pytest.mark.parametrize("truth", [3.0, 77.0, 1234.0])
def test_the_maximum_of_a_server_is_found_within_five_percent(start: float, truth: float) -> None:
    asked = []

    def measure(rate: float, confirming: bool) -> Verdict:
        asked.append((rate, confirming))
        return Verdict(Reason.HELD if rate <= truth else Reason.LATENCY, "")

    found = find_maximum(measure, start)
    assert truth / 1.06 <= found.rate <= truth
    assert truth < found.failed_rate <= found.rate * 1.06
    assert not found.generator_limited
    assert asked[-1] == (found.rate, True)
    assert len(asked) < 22


def test_a_rate_that_held_by_luck_is_not_reported() -> None:
    """Above 90 the server holds when it is asked for the first time only."""
    found = find_maximum(
        lambda rate, confirming: Verdict(Reason.HELD if rate <= (90 if confirming else 100) else Reason.LATENCY, ""), 50
    )
    assert 80 < found.rate <= 90
    assert found.failed_rate > 90


def test_a_server_that_holds_nothing_and_a_generator_that_is_too_slow() -> None:
    found = find_maximum(lambda rate, confirming: Verdict(Reason.ERRORS, ""), 50)
    assert found.rate is None
    assert found.failed_rate < 2
    limited = find_maximum(lambda rate, confirming: Verdict(Reason.HELD if rate < 1000 else Reason.GENERATOR, ""), 50)
    assert limited.generator_limited
    assert limited.failed_rate is None
    assert 900 < limited.rate < 1000


def test_replicas_and_money() -> None:
    found = capacity(250, 4, want_rate=1001, price_per_hour=0.5)
    assert found.replicas == 5
    # 5 replicas of 0.5 an hour answer 1,001 × 4 texts a second
    assert found.price_per_million_texts == pytest.approx(2.5 / 3600 / 4004 * 1e6)
    assert capacity(250, 4, None, 0.5).price_per_million_texts == pytest.approx(0.5 / 3600 / 1000 * 1e6)
    assert capacity(250, 1, 250, None).replicas == 1
