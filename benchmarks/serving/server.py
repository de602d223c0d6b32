"""Start a server, ask it, stop it with everything it started."""

import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.serving import usage
from benchmarks.serving.venvs import UnavailableError

HOST = "127.0.0.1"
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 5.0
_SETTLE_LIMIT_S = 10.0


@dataclass(frozen=True)
class Wire:
    """How a server is asked, and what its answer means."""

    path: str
    body: Callable[[list[str]], dict[str, Any]]
    """Texts to the request's JSON."""
    scores: Callable[[Any, Sequence[str]], list[dict[str, float]]]
    """The answer's JSON and the model's labels to a score for each label, for each text."""


@dataclass(frozen=True)
class Launch:
    """What to run."""

    command: Sequence[str]
    variables: Mapping[str, str]
    """Added to the environment."""
    folder: Path
    port: int


class Server:
    """A running server; a context manager that ends it."""

    def __init__(self, launch: Launch, wire: Wire, labels: Sequence[str], log: Path) -> None:
        self.wire, self.port, self._labels, self._log = wire, launch.port, labels, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                launch.command,
                cwd=launch.folder,
                env=os.environ | dict(launch.variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The first process of the server's tree."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where texts go."""
        return f"http://{HOST}:{self.port}{self.wire.path}"

    def wait(self, text: str) -> Self:
        """Return once it classifies; raises UnavailableError with the end of its log when it does not."""
        limit = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                self.classify([text])
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.2)
            else:
                return self
        raise UnavailableError(f"did not come up: {explain(self._log.read_text(errors='replace'))}")

    def classify(self, texts: list[str]) -> list[dict[str, float]]:
        """Return the score of each label for each text; raises ValueError for an answer that is no success."""
        link = http.client.HTTPConnection(HOST, self.port, timeout=30)
        try:
            body = json.dumps(self.wire.body(texts))
            link.request("POST", self.wire.path, body, {"Content-Type": "application/json"})
            answer = link.getresponse()
            found = answer.read()
        finally:
            link.close()
        if answer.status != 200:
            raise ValueError(f"answered {answer.status}: {found[:300].decode(errors='replace')}")
        return self.wire.scores(json.loads(found), self._labels)

    def settle(self) -> None:
        """Wait, but not for ever, until it uses less than a third of a core: an overload's remains are worked off."""
        limit = time.monotonic() + _SETTLE_LIMIT_S
        while time.monotonic() < limit:
            before = usage.cpu_seconds(self.pid)
            time.sleep(0.2)
            if usage.cpu_seconds(self.pid) - before <= 0.06:
                return

    def pause(self) -> None:
        """Stop the whole tree, since some peers poll while they have nothing to do; parents before children."""
        _signal(sorted(usage.tree(self.pid)), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on; children first, so that no parent finds one that does not answer."""
        _signal(sorted(usage.tree(self.pid), reverse=True), signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        started = usage.tree(self.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _signal(started - {self.pid}, signal.SIGKILL)  # workers that outlived it


def explain(log: str) -> str:
    """Return the line of a log that says best why a server ended: its last exception, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["its log is empty"]
    exceptions = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Fail): ", line)]
    return (exceptions or lines)[-1][:300].replace("|", "/")


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
