"""A rollout at work in one process: which version answers, what is counted of the candidate, when it has to go."""

import asyncio
import math
import time
from collections.abc import Sequence
from random import random
from typing import TYPE_CHECKING

from service.engine.request import Classified
from service.engine.tokenization import Reading, TextInput
from service.errors import DeadlineError, InferenceError, NotReadyError, UnexpectedError
from service.instruments import CounterFamily
from service.metrics import Metrics
from service.rollout import Judge, Rollout, Seen, State
from service.shadow import Shadows
from service.visits import Visit

if TYPE_CHECKING:
    from service.model import Model

_FAULTS = frozenset(kind.code for kind in (InferenceError, UnexpectedError, NotReadyError, DeadlineError))
_CANARY, _SHADOW = "canary", "shadow"


class Tally:
    """A counter, and what it has come to in all workers since this trial began here."""

    def __init__(self, metrics: Metrics, family: CounterFamily, *labels: str) -> None:
        self.inc = family.labels(*labels).inc
        self._metrics = metrics
        self._key = family.name, *labels
        self._before = metrics.total(*self._key)

    @property
    def value(self) -> float:
        """Return what it has come to."""
        return self._metrics.total(*self._key) - self._before


class Trial:
    """One for each rollout; use it on the event loop. The registry calls `arrange` whenever models come or go."""

    def __init__(self, name: str, rollout: Rollout, metrics: Metrics) -> None:
        plan, of = rollout.plan, (name, rollout.plan.candidate)
        self.name = name
        self.rollout = rollout
        self.stable: Model | None = None
        self.candidate: Model | None = None
        self.verdict = ""
        """Why the candidate has to go, from the moment that this process knows."""
        self.requests, self.shadows = (
            Tally(metrics, metrics.rollout_requests, *of, kind) for kind in (_CANARY, _SHADOW)
        )
        self.faults, self.shadow_faults = (
            Tally(metrics, metrics.rollout_faults, *of, kind) for kind in (_CANARY, _SHADOW)
        )
        self.slow = Tally(metrics, metrics.rollout_slow_requests, *of)
        self.comparisons = Tally(metrics, metrics.shadow_comparisons, *of)
        self.disagreements = Tally(metrics, metrics.shadow_disagreements, *of)
        self.shadows_shed = Tally(metrics, metrics.shadows_shed, *of)
        self._gauges = metrics.rollout_share.labels(*of), metrics.rolled_back.labels(*of)
        self._judge = Judge(plan, time.monotonic())
        self._slow_s = math.inf if plan.max_p99_ms is None else plan.max_p99_ms / 1000
        self._shadows = Shadows(self)

    def arrange(self, versions: Sequence["Model"]) -> list["Model"]:
        """Take note of the versions in service, highest first, and return them with the one that answers first.

        Without the stable version the highest other one stands in for it, and without any other the candidate answers.
        """
        plan = self.rollout.plan
        self.candidate = next((model for model in versions if model.version == plan.candidate), None)
        others = [model for model in versions if model is not self.candidate]
        self.stable = next((model for model in others if model.version == plan.stable), others[0] if others else None)
        promoted = self.candidate if self.rollout.state is State.PROMOTED else None
        answers = promoted or self.stable or self.candidate
        return [model for model in versions if model is answers] + [model for model in versions if model is not answers]

    @property
    def problem(self) -> str:
        """Why the candidate gets no requests although the rollout is running, if that is so."""
        if self.candidate is None:
            return f"version {self.rollout.plan.candidate} is not in service"
        if self.stable is None:
            return f"version {self.candidate.version} is the only one in service, and answers everything"
        mine, other = self.candidate.manifest, self.stable.manifest
        if (mine.task, mine.text_pair) != (other.task, other.text_pair):
            return f"version {mine.version} is for another task or kind of input than version {other.version}"
        return ""

    @property
    def running(self) -> bool:
        """Whether the candidate takes part now."""
        return self.rollout.state is State.RUNNING and not self.verdict and not self.problem

    @property
    def spared(self) -> bool:
        """Whether requests without a version can do without the candidate."""
        return self.rollout.state is not State.PROMOTED and self.stable is not None

    def choose(self) -> "Model":
        """Return the version that answers a request, while the trial is running; every request is a draw of its own."""
        assert self.stable is not None  # noqa: S101
        assert self.candidate is not None  # noqa: S101
        if random() >= self.rollout.plan.share or self.verdict:  # noqa: S311 - no secret
            return self.stable
        if self.candidate.ready:
            return self.candidate
        self.requests.inc()  # its fault, which the client need not feel
        self.faults.inc()
        return self.stable

    def asked(
        self,
        model: "Model",
        inputs: Sequence[TextInput],
        reading: Reading,
        answer: "asyncio.Future[list[Classified]]",
    ) -> None:
        """Begin a shadow of a request that the engine has, if it is the stable version's and chance says so."""
        if model is not self.stable or self.candidate is None or self.verdict:
            return
        if random() < self.rollout.plan.shadow:  # noqa: S311 - no secret
            self._shadows.follow(model, self.candidate, inputs, reading, answer)

    def answered(self, visit: Visit, status: int) -> None:
        """Count a request that is over; what clients did wrong is nothing of the candidate's."""
        if visit.version != self.rollout.plan.candidate:
            return
        if visit.error == DeadlineError.code and not visit.asked_s:
            return  # over before the engine had it: a slow body, a short deadline
        fault = visit.error in _FAULTS
        if not fault and (visit.error or status >= 400):
            return
        self.requests.inc()
        if fault:
            self.faults.inc()
        if visit.asked_s and (visit.answered_s or time.monotonic()) - visit.asked_s > self._slow_s:
            self.slow.inc()

    def compared(self, texts: int, differing: int) -> None:
        """Count a shadow that was answered."""
        self.shadows.inc()
        self.comparisons.inc(texts)
        self.disagreements.inc(differing)

    def failed(self) -> None:
        """Count a shadow in which the candidate failed."""
        self.shadows.inc()
        self.shadow_faults.inc()

    def shed(self) -> None:
        """Count a shadow that was left out."""
        self.shadows_shed.inc()

    def judge(self, now_s: float) -> None:
        """Look whether the candidate, in all workers together, has broken a limit; it gets no more requests then."""
        if self.running:
            self.verdict = (
                self._judge.verdict(
                    Seen(self.requests.value + self.shadows.value, self.faults.value + self.shadow_faults.value),
                    Seen(self.requests.value, self.slow.value),
                    Seen(self.comparisons.value, self.disagreements.value),
                    now_s,
                )
                or ""
            )

    def show(self) -> None:
        """Let the gauges say how it stands."""
        share, rolled_back = self._gauges
        state = self.rollout.state
        share.set({State.RUNNING: self.rollout.plan.share, State.PROMOTED: 1.0}.get(state, 0.0))
        rolled_back.set(state is State.ROLLED_BACK)

    def forget(self) -> None:
        """Show nothing any more."""
        for gauge in self._gauges:
            gauge.set(math.nan)
