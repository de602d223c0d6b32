"""What an operator states of a new version that answers a part of the requests, and when it has to go.

No clock, no network, no model: `service.trial` counts, this file decides.
"""

from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

_P99_SHARE = 0.01  # of the requests may take longer than the p99
_LEAST_S = 30.0  # that a window spans once there was so much time


class State(StrEnum):
    """RUNNING → ROLLED_BACK by a limit; either → PROMOTED by an operator. Only an operator begins anew."""

    RUNNING = "running"
    ROLLED_BACK = "rolled back"
    PROMOTED = "promoted"


class Plan(BaseModel):
    """A rollout, as an operator states it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"candidate": "2"},
                {"candidate": "2", "share": 0.05, "shadow": 0.2, "max_p99_ms": 100, "max_disagreement": 0.1},
            ]
        },
    )

    candidate: str = Field(
        min_length=1, max_length=128, description="the new version; it need not be loaded yet, and is held back then"
    )
    stable: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="the version that answers the rest; by default the one that does so now",
    )
    share: float = Field(
        default=0, ge=0, le=1, description="share of the requests without a version that the candidate answers"
    )
    shadow: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of the other requests without a version that the candidate answers too, to be compared",
    )
    max_error_rate: float | None = Field(
        default=0.05,
        ge=0,
        le=1,
        description="roll back when a larger share of the candidate's requests, shadows included, ends with a fault "
        "of ours; null: never",
    )
    max_p99_ms: float | None = Field(
        default=None,
        gt=0,
        le=3_600_000,
        description="roll back when more than 1 % of the candidate's requests, shadows excluded, take longer",
    )
    max_disagreement: float | None = Field(
        default=None, ge=0, le=1, description="roll back when a larger share of the shadows' texts is decided otherwise"
    )
    min_requests: int = Field(
        default=100, ge=1, le=1_000_000, description="a limit is judged over at least so many of what it limits"
    )

    @field_validator("stable")
    @classmethod
    def _another(cls, stable: str | None, info: ValidationInfo) -> str | None:
        if stable is not None and stable == info.data.get("candidate"):
            raise ValueError("expected another version than the candidate")
        return stable


class Rollout(BaseModel):
    """A plan, and what has become of it. `number` tells it from the same plan stated again."""

    model_config = ConfigDict(frozen=True)

    plan: Plan
    number: int
    state: State = State.RUNNING
    reason: str = ""
    """Why it was rolled back."""


class Seen(NamedTuple):
    """How many there were, and how many of them were bad."""

    total: float
    bad: float


class Window:
    """The newest of what is counted: between one and two times `least`, and of some seconds at least.

    While there is less it is everything since the start.
    """

    def __init__(self, least: int, start_s: float) -> None:
        self._least = least
        self._begin = self._middle = Seen(0, 0)
        self._middle_s = start_s

    def take(self, so_far: Seen, now_s: float) -> Seen:
        """Return what lies in the window; `so_far` is all since the start, `now_s` on a clock that never goes back."""
        seen = Seen(so_far.total - self._begin.total, so_far.bad - self._begin.bad)
        if now_s - self._middle_s >= _LEAST_S and so_far.total - self._middle.total >= self._least:
            self._begin, self._middle, self._middle_s = self._middle, so_far, now_s
        return seen


class Judge:
    """Holds what was seen of a candidate against its plan. Times are seconds on the caller's clock."""

    def __init__(self, plan: Plan, start_s: float) -> None:
        self._plan = plan
        self._faults, self._slow, self._differing = (Window(plan.min_requests, start_s) for _ in range(3))

    def verdict(self, faults: Seen, slow: Seen, differing: Seen, now_s: float) -> str | None:
        """Return why the candidate has to go, or None. What was seen is all since the start.

        `faults` of requests, canary and shadow; `slow` ones among the canary's; `differing` texts of shadows.
        """
        plan = self._plan
        tests = (
            (self._faults, faults, plan.max_error_rate, "of its last {} requests, shadows included, failed"),
            (
                self._slow,
                slow,
                None if plan.max_p99_ms is None else _P99_SHARE,
                f"of its last {{}} requests took more than {plan.max_p99_ms or 0:g} ms",
            ),
            (self._differing, differing, plan.max_disagreement, "of the last {} texts compared were decided otherwise"),
        )
        for window, so_far, limit, words in tests:
            seen = window.take(so_far, now_s)
            if limit is not None and seen.total >= plan.min_requests and seen.bad > limit * seen.total:
                return f"{seen.bad:.0f} {words.format(f'{seen.total:.0f}')}, expected at most {100 * limit:g} %"
        return None
