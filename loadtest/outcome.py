"""What one step measured, and how the ticks of its processes become that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest import histogram
from loadtest.intervals import mean_interval, percentile_intervals_ms, share_interval
from loadtest.messages import GOOD, Tick

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
"""The percentiles that are always reported."""

_MOST_MOMENTS = 300
_LAG_MS = 1.0
_LAG_SHARE = 0.2
_BUSY = 0.5  # of a CPU; sending comes in bursts


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; a bound that the sample does not have is None."""

    value: float | None
    low: float | None
    high: float | None


def figure(value: float, low: float, high: float) -> Figure:
    """Return the figure; what is no finite number becomes None, as JSON has it."""
    known = [one if math.isfinite(one) else None for one in (value, low, high)]
    return Figure(*known)


@dataclass(frozen=True)
class Moment:
    """Some seconds of a step, by when answers came; latencies are None where none came."""

    at_s: float
    answers_per_s: float
    errors: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True)
class Outcome:
    """One step. Latencies count from the scheduled times: of good answers, and of requests that had none in time."""

    rate_asked: float | None
    """Requests a second; None in a closed loop."""
    clients: int | None
    """Of a closed loop."""
    seconds: int
    processes: int
    requests: int
    """Scheduled in the measured part."""
    samples: int
    """Latencies."""
    rate: Figure
    """Good answers a second."""
    latency_ms: dict[str, Figure]
    """By the names in SHARES."""
    mean_ms: float | None
    max_ms: float | None
    errors: dict[str, int]
    """By kind."""
    error_share: Figure
    """Of the requests."""
    lag_p50_ms: float | None
    lag_p99_ms: float | None
    """How long after its time a request was sent, for reasons of the process that sends; None in a closed loop."""
    lag_max_ms: float | None
    cpu_share: float
    """Of one CPU, of the process that took most of it."""
    most_in_flight: int
    histogram: str
    """All latencies: an HDR histogram (V2, base64) of microseconds."""
    timeline: list[Moment]

    @property
    def generator_limited(self) -> bool:
        """Whether the process that sends, and not the server, makes up more than a fifth of the reported p99."""
        p99_ms = self.latency_ms["p99"].value or 0.0
        return self.lag_p99_ms is not None and self.lag_p99_ms > max(_LAG_MS, _LAG_SHARE * p99_ms)

    @property
    def generator_note(self) -> str:
        """What is to be said where it does."""
        why = "more processes may help" if self.generator_busy else "other programs have this machine's processors"
        return (
            f"the load generator was the limit: 1 % of the requests left {self.lag_p99_ms:,.1f} ms or more after their "
            f"time; its busiest process used {self.cpu_share:.0%} of a CPU: {why}"
        )

    @property
    def generator_busy(self) -> bool:
        """Whether a process that sends had much to do: more of them would help."""
        return self.cpu_share > _BUSY

    def percentile_ms(self, share: float) -> float:
        """Return the percentile; nan where nothing was answered."""
        return histogram.percentile_ms(histogram.counts_of(self.histogram), share)


@dataclass
class _Block:
    latency: histogram.Counts = field(default_factory=lambda: np.zeros(histogram.bucket_count(), dtype=np.int64))
    outcomes: dict[str, int] = field(default_factory=dict)
    answers: int = 0


class Collector:
    """Adds up the ticks of one step."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._block_s = -(-seconds // _MOST_MOMENTS)
        self._blocks: dict[int, _Block] = {}
        self._per_second = np.zeros(seconds, dtype=np.float64)
        self._lag = np.zeros(histogram.bucket_count(), dtype=np.int64)
        self._busy_s: dict[int, float] = {}
        self._in_flight: dict[int, int] = {}
        self._most_in_flight = 0

    def add(self, process: int, tick: Tick) -> None:
        """Add what one process saw in one second."""
        self._in_flight[process] = tick.in_flight
        self._most_in_flight = max(self._most_in_flight, sum(self._in_flight.values()))
        if tick.second < 0:
            return
        block = self._blocks.setdefault(tick.second // self._block_s, _Block())
        block.latency += histogram.counts_of(tick.latency)
        self._lag += histogram.counts_of(tick.lag)
        for kind, count in tick.outcomes.items():
            block.outcomes[kind] = block.outcomes.get(kind, 0) + count
        if tick.second < self._seconds:
            block.answers += tick.answers
            self._per_second[tick.second] += tick.answers
            self._busy_s[process] = self._busy_s.get(process, 0.0) + tick.busy_s

    def outcome(self, rate: float | None, clients: int | None, processes: int) -> Outcome:
        """Return what was measured."""
        blocks = [self._blocks[number] for number in sorted(self._blocks)]
        latencies = np.stack([block.latency for block in blocks])
        whole = latencies.sum(axis=0)
        intervals = percentile_intervals_ms(latencies, list(SHARES.values()))
        outcomes: dict[str, int] = {}
        for block in blocks:
            for kind, count in block.outcomes.items():
                outcomes[kind] = outcomes.get(kind, 0) + count
        errors = {kind: count for kind, count in sorted(outcomes.items()) if kind != GOOD}
        requests, failed = sum(outcomes.values()), sum(errors.values())
        return Outcome(
            rate_asked=rate,
            clients=clients,
            seconds=self._seconds,
            processes=processes,
            requests=requests,
            samples=int(whole.sum()),
            rate=figure(float(self._per_second.mean()), *mean_interval(self._per_second)),
            latency_ms={
                name: figure(histogram.percentile_ms(whole, share), *interval)
                for (name, share), interval in zip(SHARES.items(), intervals, strict=True)
            },
            mean_ms=known(histogram.mean_ms(whole)),
            max_ms=known(histogram.percentile_ms(whole, 1)),
            errors=errors,
            error_share=figure(failed / requests if requests else 0.0, *share_interval(failed, requests)),
            lag_p50_ms=known(histogram.percentile_ms(self._lag, 0.5)),
            lag_p99_ms=known(histogram.percentile_ms(self._lag, 0.99)),
            lag_max_ms=known(histogram.percentile_ms(self._lag, 1)),
            cpu_share=max(self._busy_s.values(), default=0.0) / self._seconds,
            most_in_flight=self._most_in_flight,
            histogram=histogram.encoded(whole),
            timeline=[self._moment(number) for number in sorted(self._blocks)],
        )

    def _moment(self, number: int) -> Moment:
        block, begin_s = self._blocks[number], number * self._block_s
        p50_ms, p99_ms, max_ms = (known(histogram.percentile_ms(block.latency, share)) for share in (0.5, 0.99, 1))
        measured_s = max(1, min(self._block_s, self._seconds - begin_s))
        errors = sum(count for kind, count in block.outcomes.items() if kind != GOOD)
        return Moment(begin_s, block.answers / measured_s, errors, p50_ms, p99_ms, max_ms)


def known(value: float) -> float | None:
    """Return the number; None for nan and infinities."""
    return value if math.isfinite(value) else None


def curve(outcome: Outcome, shares: Sequence[float]) -> list[tuple[float, float]]:
    """Return (share, milliseconds) of a step, as far as its samples reach."""
    counts = histogram.counts_of(outcome.histogram)
    reachable = [share for share in shares if outcome.samples * (1 - share) >= 1]
    return [(share, histogram.percentile_ms(counts, share)) for share in reachable]
