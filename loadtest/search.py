"""Searches for the highest rate that holds an objective: knows rates and verdicts, no network and no clock."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.objective import Reason, Verdict

_PRECISION = 1.05
"""The rate that failed is at most this much above the one that held."""
_LEAST_RATE = 1.0
_CONFIRMATIONS = 4
_STEP_DOWN = 0.95

Measure = Callable[[float, bool], Verdict]
"""Called with a rate, and whether the step is to confirm what was found."""


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    rate: float | None
    """The highest rate that held, and held again when it was confirmed; None: none did."""
    failed_rate: float | None
    """The lowest rate that failed; None where none did for a reason of the server's."""
    generator_limited: bool
    """Whether the search ended because more could not be sent: the server may hold more."""


def find_maximum(measure: Measure, start: float) -> Found:
    """Double or halve the rate until one holds and one fails, bisect between them (in ratio), and confirm."""
    held: list[float] = []
    failed: float | None = None
    limited = False
    rate = start
    while True:
        verdict = measure(rate, False)
        if verdict.held:
            held.append(rate)
        else:
            failed = rate
            limited = verdict.reason is Reason.GENERATOR
        if not held:
            if rate / 2 < _LEAST_RATE:
                return Found(None, failed, limited)
            rate = rounded(rate / 2)
        elif failed is None:
            rate = rounded(rate * 2)
        elif failed / held[-1] <= _PRECISION or rounded(math.sqrt(failed * held[-1])) in (failed, held[-1]):
            return _confirmed(measure, held, failed, limited)
        else:
            rate = rounded(math.sqrt(failed * held[-1]))


def _confirmed(measure: Measure, held: list[float], failed: float, limited: bool) -> Found:
    """Measure the best rate once more, which was found by luck if it fails now; then try slightly lower ones."""
    rate = held[-1]
    for _ in range(_CONFIRMATIONS):
        verdict = measure(rate, True)
        if verdict.held:
            return Found(rate, None if limited else failed, limited)
        failed, limited = rate, verdict.reason is Reason.GENERATOR
        rate = rounded(rate * _STEP_DOWN)
    return Found(None, failed, limited)


def rounded(rate: float) -> float:
    """Return the rate to three digits."""
    return float(f"{rate:.3g}")
