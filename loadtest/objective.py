"""Objectives such as `p99<50ms`, and whether a step held them."""

import re
from dataclasses import dataclass
from enum import StrEnum

from loadtest.errors import ObjectiveError
from loadtest.outcome import Outcome

_TERM = re.compile(r"p(?P<percentile>\d{1,2}(\.\d+)?)\s*<=?\s*(?P<limit>\d+(\.\d+)?)\s*(?P<unit>us|µs|ms|s)")
_ERRORS = re.compile(r"errors\s*<=?\s*(?P<limit>\d+(\.\d+)?)\s*%")
_UNIT_MS = {"us": 0.001, "µs": 0.001, "ms": 1.0, "s": 1000.0}
_SAMPLES_BEYOND = 10
_DEFAULT_ERRORS = 0.001


class Reason(StrEnum):
    """What became of a step."""

    HELD = "held"
    LATENCY = "latency"
    ERRORS = "errors"
    GENERATOR = "generator"
    """The process that sends could not keep its times: nothing is known of the server."""


@dataclass(frozen=True)
class Verdict:
    """Whether a step held its objective, and why not."""

    reason: Reason
    detail: str

    @property
    def held(self) -> bool:
        """Whether it did."""
        return self.reason is Reason.HELD

    def __str__(self) -> str:
        """Say so in words."""
        return "held" if self.held else f"failed by {self.reason}: {self.detail}"


@dataclass(frozen=True)
class Objective:
    """Percentiles with their limits, and the share of errors that is allowed."""

    limits_ms: dict[float, float]
    """By the share of requests, 0.99 for p99."""
    errors: float
    text: str

    @property
    def samples(self) -> int:
        """How many answers a step needs, so that ten lie beyond the highest percentile."""
        return max(round(_SAMPLES_BEYOND / (1 - share)) for share in self.limits_ms)

    def judge(self, outcome: Outcome) -> Verdict:
        """Return whether the step held this, or what it failed by."""
        missed = []
        share_failed = outcome.error_share.value or 0.0
        if share_failed > self.errors:
            kinds = ", ".join(f"{kind}: {count:,}" for kind, count in outcome.errors.items())
            missed.append((Reason.ERRORS, f"{share_failed:.2%} errors ({kinds}), allowed {self.errors:.2%}"))
        for share, limit_ms in self.limits_ms.items():
            found_ms = outcome.percentile_ms(share)
            if not found_ms <= limit_ms:  # nan, without any answer, holds nothing
                missed.append((Reason.LATENCY, f"p{100 * share:g} {found_ms:,.1f} ms, allowed {limit_ms:g} ms"))
        if not missed:
            return Verdict(Reason.HELD, "")
        if outcome.generator_limited:
            return Verdict(Reason.GENERATOR, outcome.generator_note)
        return Verdict(missed[0][0], "; ".join(detail for _, detail in missed))


def parse(text: str) -> Objective:
    """Return the objective that `text` states: terms with commas between them; raises ObjectiveError.

    A percentile below a time, any number of them (`p99<50ms`), and at most once a share of errors (`errors<1%`;
    0.1 % unless given).
    """
    limits: dict[float, float] = {}
    errors = None
    for term in text.split(","):
        if (found := _TERM.fullmatch(term.strip())) and float(found["percentile"]) > 0 and float(found["limit"]) > 0:
            limits[round(float(found["percentile"]) / 100, 9)] = float(found["limit"]) * _UNIT_MS[found["unit"]]
        elif errors is None and (found := _ERRORS.fullmatch(term.strip())) and float(found["limit"]) <= 100:
            errors = float(found["limit"]) / 100
        else:
            raise ObjectiveError(f"--slo: found {term.strip()!r}, expected terms such as p99<50ms and errors<1%")
    if not limits:
        raise ObjectiveError(f"--slo: found {text!r}, expected at least one percentile, such as p99<50ms")
    return Objective(limits, _DEFAULT_ERRORS if errors is None else errors, text)
