"""Two results side by side, and whether their difference is more than noise."""

import math
from dataclasses import dataclass

from loadtest.intervals import difference_interval
from loadtest.outcome import SHARES, Figure, Outcome
from loadtest.result import Result
from loadtest.search import Found


@dataclass(frozen=True)
class Row:
    """One figure of both."""

    name: str
    first: Figure
    second: Figure
    difference: float | None
    """Second minus first."""
    low: float | None
    high: float | None
    """The difference's 95 % interval; a bound that is not known is None."""

    @property
    def verdict(self) -> str:
        """Whether the interval holds 0."""
        if self.difference is None:
            return "not known"
        if self.low is not None and self.low > 0:
            return "higher"
        if self.high is not None and self.high < 0:
            return "lower"
        return "within noise"


@dataclass(frozen=True)
class Comparison:
    """Rows, and what makes them hard to compare."""

    first: Outcome
    second: Outcome
    rows: list[Row]
    notes: list[str]


def compare(first: Result, second: Result) -> Comparison:
    """Compare the steps at the highest rate that both were asked; where there is none, each result's main step."""
    rows = []
    if first.maximum and second.maximum and first.maximum.rate and second.maximum.rate:
        rows.append(_row("highest rate that held, /s", _bracket(first.maximum), _bracket(second.maximum)))
    one, other, same = _steps(first, second)
    notes = (
        [] if same else [f"the loads differ: {load(one)} and {load(other)}; latencies at different loads say little"]
    )
    notes += _notes(first, second)
    for name, outcome in (("first", one), ("second", other)):
        if outcome.generator_limited:
            notes.append(f"{name}: {outcome.generator_note}")
    rows.append(_row("answers, /s", one.rate, other.rate))
    rows += [_row(f"{name}, ms", one.latency_ms[name], other.latency_ms[name]) for name in SHARES]
    rows.append(_row("errors, %", _percent(one.error_share), _percent(other.error_share)))
    return Comparison(one, other, rows, notes)


def load(outcome: Outcome) -> str:
    """Return in words what was asked."""
    if outcome.rate_asked is None:
        return f"{outcome.clients} clients in a closed loop"
    return f"{outcome.rate_asked:g} requests/s"


def _steps(first: Result, second: Result) -> tuple[Outcome, Outcome, bool]:
    """Return a step of each, and whether the same was asked; of repeated steps the last."""
    of_first = {load(step.outcome): step.outcome for step in first.steps}
    of_second = {load(step.outcome): step.outcome for step in second.steps}
    held = {load(s.outcome) for result in (first, second) for s in result.steps if s.verdict and not s.verdict.held}
    common = [name for name in of_first if name in of_second]
    best = max(common, key=lambda name: (name not in held, of_first[name].rate_asked or 0.0), default=None)
    if best is None:
        return first.main_step.outcome, second.main_step.outcome, False
    return of_first[best], of_second[best], True


def _bracket(found: Found) -> Figure:
    """The true maximum lies between the rate that held and the one that failed."""
    return Figure(found.rate, found.rate, found.failed_rate)


def _percent(share: Figure) -> Figure:
    return Figure(*(None if value is None else 100 * value for value in (share.value, share.low, share.high)))


def _row(name: str, first: Figure, second: Figure) -> Row:
    if first.value is None or second.value is None:
        return Row(name, first, second, None, None, None)
    low, high = difference_interval(first.value, _interval(first), second.value, _interval(second))
    bounds = [bound if math.isfinite(bound) else None for bound in (low, high)]
    return Row(name, first, second, second.value - first.value, *bounds)


def _interval(figure: Figure) -> tuple[float, float]:
    low = -math.inf if figure.low is None else figure.low
    return low, math.inf if figure.high is None else figure.high


def _notes(first: Result, second: Result) -> list[str]:
    one, other = first.asking, second.asking
    names = {
        "dialect": (one.dialect, other.dialect),
        "texts a request": (one.texts_a_request, other.texts_a_request),
        "texts": (str(one.mix), str(other.mix)),
        "arrivals": (one.arrivals, other.arrivals),
        "connections": (one.reuse, other.reuse),
    }
    return [f"the {name} differ: {a} and {b}" for name, (a, b) in names.items() if a != b]
