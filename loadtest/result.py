"""The result of a load test as a file of JSON."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from loadtest.capacity import Capacity
from loadtest.errors import ResultError
from loadtest.objective import Verdict
from loadtest.outcome import Outcome
from loadtest.search import Found
from loadtest.server_metrics import ServerMoment
from loadtest.workload import LengthMix

FORMAT = 1


@dataclass(frozen=True)
class Asking:
    """How the server was asked."""

    url: str
    dialect: str
    model: str | None
    texts_a_request: int
    pairs: bool
    texts: str
    """Where they came from."""
    mix: LengthMix
    arrivals: str | None
    """None in a closed loop."""
    reuse: bool
    warm_up_s: float
    timeout_s: float
    seed: int


@dataclass(frozen=True)
class StepResult:
    """One step: what was measured, what the server said meanwhile, and whether the objective was held."""

    outcome: Outcome
    server: list[ServerMoment]
    verdict: Verdict | None
    """None without an objective."""


@dataclass(frozen=True)
class Result:
    """A whole load test."""

    format: int
    version: str
    """Of Limbeck."""
    began: str
    """ISO 8601, with the offset from UTC."""
    asking: Asking
    objective: str | None
    steps: list[StepResult]
    maximum: Found | None
    """What a search found; None without one."""
    capacity: Capacity | None

    @property
    def main_step(self) -> StepResult:
        """The step to report: the last one at the found maximum, else the last."""
        rate = None if self.maximum is None else self.maximum.rate
        return next((one for one in reversed(self.steps) if one.outcome.rate_asked == rate), self.steps[-1])


def write_result(result: Result, path: Path) -> None:
    """Write the file whole or not at all."""
    with whole_file(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read_result(path: Path) -> Result:
    """Return what a file holds; raises ResultError and OSError."""
    content = path.read_bytes()
    try:
        found = msgspec.json.decode(content, type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: found no result of `limbeck loadtest run --json` ({error})") from error
    if found.format != FORMAT:
        raise ResultError(f"{path}: found format {found.format}, expected {FORMAT}")
    if not found.steps:
        raise ResultError(f"{path}: found no steps, expected at least one")
    return found


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file that appears under its name when it is whole; raises OSError."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
