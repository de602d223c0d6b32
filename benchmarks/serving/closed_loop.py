"""Closed loop: wrk keeps a number of connections busy; each sends its next request when it has its answer."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("rotate.lua")


@dataclass(frozen=True)
class Measured:
    """What a load generator saw of a server."""

    per_second: float
    """Good answers."""
    p50_ms: float
    p99_ms: float
    answers: int
    """Good answers in all."""
    errors: int
    """Answers that are no success, broken connections, and requests without an answer."""


def find_wrk() -> str:
    """Return the path of wrk; SystemExit says how to get it."""
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("wrk is not installed, and the closed loop needs it: apt-get install wrk")
    return found


def wrk_version() -> str:
    """Return what wrk calls itself."""
    printed = subprocess.run([find_wrk(), "-v"], capture_output=True, text=True, check=False).stdout
    return " ".join(printed.split()[:2])


def write_bodies(path: Path, batches: Sequence[Sequence[str]]) -> Path:
    """Write a request to Limbeck for each batch of texts, a line each, and return the path."""
    path.write_text("".join(json.dumps({"inputs": batch}) + "\n" for batch in batches), encoding="utf-8")
    return path


def run(
    url: str,
    bodies: Path,
    connections: int,
    seconds: int,
    halfway: Callable[[], None],
    headers: Sequence[str] = (),
) -> Measured:
    """POST the lines of `bodies` in turn over so many connections; `halfway` is called in the middle.

    One thread of wrk sends, since the server needs the other cores. Raises RuntimeError when wrk fails.
    """
    command = [find_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(_SCRIPT)]
    command += [part for header in headers for part in ("-H", header)] + [url]
    with subprocess.Popen([*command, "--", str(bodies)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        time.sleep(seconds / 2)
        halfway()
        printed = process.communicate(timeout=seconds + 30)[0].decode()
    if process.returncode:
        raise RuntimeError(f"wrk ended with {process.returncode}: {printed.strip()[-300:]}")
    return parse(printed)


def parse(printed: str) -> Measured:
    """Return the figures in the line of JSON that rotate.lua makes wrk print last."""
    found = json.loads(printed.strip().splitlines()[-1])
    good = found["answers"] - found["bad_status"]
    if not found["answers"]:  # wrk calls the latency of nothing 0
        found |= {"p50_ms": float("nan"), "p99_ms": float("nan")}
    return Measured(
        good / found["seconds"], found["p50_ms"], found["p99_ms"], good, found["bad_status"] + found["broken"]
    )
