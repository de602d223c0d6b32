"""What an operator has asked for since the start, and what came of it: small files that all workers read.

A worker that is asked writes the wish, does it like every other, and answers when all have reported. The folder lives
as long as the service.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from service.rollout import Plan, Rollout, State

if sys.platform != "win32":  # where there is only one worker
    import fcntl

_WISHES = "wishes.json"


class Wishes(NamedTuple):
    """The state that is wanted. `number` grows with every change, a repeated wish included."""

    number: int = 0
    looks: int = 0
    """The number of the last wish after which bundles and keys are to be looked at."""
    unloaded: frozenset[str] = frozenset()
    """Names of models that are to stay out of service."""
    rollouts: Mapping[str, Rollout] = MappingProxyType({})
    """By the model's name."""

    def with_rollout(self, model: str, plan: Plan) -> "Wishes":
        """Begin a rollout, in place of the model's last one."""
        return self._replace(rollouts={**self.rollouts, model: Rollout(plan=plan, number=self.number + 1)})

    def with_state(self, model: str, number: int, state: State, reason: str = "") -> "Wishes":
        """Let the rollout with a number come to a state; no other, and not once it is over, unless by a promotion."""
        found = self.rollouts.get(model)
        if found is None or found.number != number or (found.state is not State.RUNNING and state is State.ROLLED_BACK):
            return self
        changed = found.model_copy(update={"state": state, "reason": reason})
        return self._replace(rollouts={**self.rollouts, model: changed})

    def without_rollout(self, model: str) -> "Wishes":
        """Forget a model's rollout."""
        return self._replace(rollouts={name: one for name, one in self.rollouts.items() if name != model})


class Report(NamedTuple):
    """What one worker has done up to a number of the wishes: models that could not be loaded, and why."""

    number: int
    failures: dict[str, str]


class WishFolder:
    """The files; `slot` is the number of the worker that uses them."""

    def __init__(self, folder: Path, slot: int) -> None:
        self._folder = folder
        self._slot = slot

    def read(self) -> Wishes:
        """Return what is wanted now."""
        try:
            content = json.loads((self._folder / _WISHES).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Wishes()
        return Wishes(
            content["number"],
            content["looks"],
            frozenset(content["unloaded"]),
            {model: Rollout.model_validate(one) for model, one in content["rollouts"].items()},
        )

    def ask(self, change: Callable[[Wishes], Wishes] = lambda wishes: wishes, *, look: bool = True) -> Wishes:
        """Change what is wanted, or repeat it as it is; `look` has workers look at the bundles. Return it."""
        with self._alone():
            before = self.read()
            number = before.number + 1
            wishes = change(before)._replace(number=number, looks=number if look else before.looks)
            self._keep(wishes)
        return wishes

    def _keep(self, wishes: Wishes) -> None:
        rollouts = {model: one.model_dump(mode="json") for model, one in wishes.rollouts.items()}
        self._write(_WISHES, wishes._asdict() | {"unloaded": sorted(wishes.unloaded), "rollouts": rollouts})

    def report(self, report: Report) -> None:
        """Say what this worker has done."""
        self._write(f"report-{self._slot}.json", report._asdict())

    def reported(self, slot: int) -> Report:
        """Return what a worker has said last."""
        try:
            return Report(**json.loads((self._folder / f"report-{slot}.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Report(-1, {})

    def _write(self, name: str, content: object) -> None:
        """Write a file so that readers see either the old one or all of the new."""
        self._folder.mkdir(mode=0o700, exist_ok=True)  # somebody may have cleaned up
        half = self._folder / f"{name}.{os.getpid()}"
        half.write_text(json.dumps(content), encoding="utf-8")
        half.replace(self._folder / name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other workers from asking at the same time."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with (self._folder / "lock").open("a") as lock:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
