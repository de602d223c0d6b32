"""The rollouts of all models in this process: follows what is wanted, and tells all workers of those that failed."""

import asyncio
import logging
import time

from service.errors import RolloutError, UnknownRolloutError
from service.metrics import Metrics
from service.registry import Registry
from service.rollout import Plan, State
from service.trial import Trial
from service.wishes import Wishes, WishFolder

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_JUDGE_S = 1.0


class Trials:
    """One for each process; use it on the event loop."""

    def __init__(self, registry: Registry, metrics: Metrics, wishes: WishFolder | None) -> None:
        self._registry = registry
        self._metrics = metrics
        self._wishes = wishes
        self._trials: dict[str, Trial] = {}
        self._followed = 0

    def follow(self) -> None:
        """Bring what is tried in line with what is wanted."""
        wishes = Wishes() if self._wishes is None else self._wishes.read()
        before = {name: trial.rollout for name, trial in self._trials.items()}
        if wishes.number < self._followed or before == wishes.rollouts:  # less: somebody has cleaned up
            return
        self._followed = wishes.number
        for name in before.keys() - wishes.rollouts.keys():
            self._trials.pop(name).forget()
        for name, rollout in wishes.rollouts.items():
            trial = self._trials.get(name)
            if trial is not None and trial.rollout.number == rollout.number:
                trial.rollout = rollout
            else:
                if trial is not None:
                    trial.forget()
                trial = self._trials[name] = Trial(name, rollout, self._metrics)
            trial.show()
        self._registry.follow(self._trials)

    async def run(self) -> None:
        """Follow and judge for as long as the service runs."""
        judged_s = time.monotonic()
        while True:
            try:
                self.follow()
                if time.monotonic() >= judged_s + _JUDGE_S:
                    judged_s = time.monotonic()
                    for trial in self._trials.values():
                        trial.judge(judged_s)
                        if trial.verdict and trial.rollout.state is State.RUNNING:
                            self._roll_back(trial)
            except Exception:  # a full disk, a fault of ours: it must not end here
                log.exception("the rollouts could not be followed; trying again")
                await asyncio.sleep(_JUDGE_S)
            await asyncio.sleep(_LOOK_S)

    def find(self, model: str) -> Trial:
        """Return a model's trial; raises UnknownRolloutError when there is none."""
        trial = self._trials.get(model)
        if trial is None:
            raise UnknownRolloutError(f"no rollout of model {model[:64]!r}")
        return trial

    def complete(self, model: str, plan: Plan) -> Plan:
        """Return a plan that names the stable version.

        Raises UnknownModelError, and RolloutError when no version but the candidate could answer.
        """
        versions = [one.version for one in self._registry.versions(model)]
        if plan.stable is not None and plan.stable not in versions:
            raise RolloutError("stable", f"found {plan.stable}, expected a version in service: {', '.join(versions)}")
        others = [version for version in versions if version != plan.candidate]
        if not others:
            raise RolloutError(
                "candidate",
                f"found {plan.candidate}, the only version of {model} in service; expected another one beside it",
            )
        return plan.model_copy(update={"stable": plan.stable or others[0]})

    def check_promotion(self, model: str) -> None:
        """Raise RolloutError unless the candidate can answer everything."""
        trial = self.find(model)
        if trial.candidate is None or not trial.candidate.ready:
            raise RolloutError(
                "candidate", f"version {trial.rollout.plan.candidate} of {model} is not in service, or does not answer"
            )

    def check_removal(self, model: str) -> None:
        """Raise RolloutError when a candidate that was not promoted would answer everything from then on."""
        trial = self.find(model)
        if not trial.spared or trial.candidate is None:
            return
        highest = Registry.highest(self._registry.versions(model))
        if highest is trial.candidate:
            raise RolloutError(
                "candidate",
                f"version {highest.version} of {model} is the highest and would answer everything without the rollout; "
                "promote it, or take its bundle away first",
            )

    def _roll_back(self, trial: Trial) -> None:
        """Tell all workers; one of them logs it."""
        assert self._wishes is not None  # noqa: S101 - where trials come from
        name, before, reason = trial.name, trial.rollout, trial.verdict
        first = False

        def roll_back(wishes: Wishes) -> Wishes:
            nonlocal first
            first = wishes.rollouts.get(name) == before
            return wishes.with_state(name, before.number, State.ROLLED_BACK, reason)

        self._wishes.ask(roll_back, look=False)
        self.follow()
        if first:
            log.error("%s: version %s is rolled back: %s", name, before.plan.candidate, reason)
