"""What an operator has asked for since the start, and what came of it: small files that all workers read.

A worker that is asked writes the wish, does it like every other, and answers when all have reported. The folder lives
as long as the service.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

if sys.platform != "win32":  # where there is only one worker
    import fcntl

_WISHES = "wishes.json"


class Wishes(NamedTuple):
    """The state that is wanted. `number` grows with every change, a repeated wish included."""

    number: int = 0
    unloaded: frozenset[str] = frozenset()
    """Names of models that are to stay out of service."""


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
        return Wishes(content["number"], frozenset(content["unloaded"]))

    def ask(self, change: Callable[[frozenset[str]], frozenset[str]] = frozenset) -> int:
        """Change which models are to be out of service, or repeat the wish as it is; return its number."""
        with self._alone():
            before = self.read()
            wishes = Wishes(before.number + 1, change(before.unloaded))
            self._write(_WISHES, {"number": wishes.number, "unloaded": sorted(wishes.unloaded)})
        return wishes.number

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
