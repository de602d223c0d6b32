"""One load test from end to end: the order of things."""

import math
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from loadtest import objective, workload
from loadtest.arrivals import Arrivals
from loadtest.capacity import capacity
from loadtest.dialects import Text, asked
from loadtest.errors import WorkloadError
from loadtest.fleet import Fleet, Step
from loadtest.live import Progress
from loadtest.messages import Settings
from loadtest.objective import Objective, Reason, Verdict
from loadtest.outcome import Outcome
from loadtest.result import FORMAT, Asking, Result, StepResult
from loadtest.search import Found, find_maximum
from loadtest.server_metrics import Scraper
from loadtest.tables import step_line
from loadtest.target import headers_of, parse_url, whole_request

_RATE_A_PROCESS = 3000.0
"""Requests a second that one process can send and time well on an ordinary CPU, with room."""
_FIRST_RATE = 50.0
_LEAST_STEP_S = 10
_MOST_STEP_S = 120


@dataclass(frozen=True)
class Options:
    """What the command was given."""

    url: str
    rate: float | None
    clients: int | None
    seconds: int
    warm_up_s: float
    slo: str | None
    find_max: bool
    texts: Path | None
    text_column: str
    text_pair_column: str
    pairs: bool
    texts_a_request: int
    dialect: str
    model: str | None
    api_key_file: Path | None
    arrivals: Arrivals
    reuse: bool
    max_connections: int
    timeout_s: float
    processes: int | None
    metrics_path: str
    want_rate: float | None
    price_per_hour: float | None
    seed: int


def run(options: Options, console: Console) -> Result:
    """Ask the server once, then put it under load; progress goes to `console`. Raises LoadTestError and OSError."""
    target = parse_url(options.url)
    goal = None if options.slo is None else objective.parse(options.slo)
    texts = _texts(options)
    requests = [
        asked(options.dialect, batch, options.model) for batch in workload.batches(texts, options.texts_a_request)
    ]
    key = None if options.api_key_file is None else _api_key(options.api_key_file)
    headers = headers_of(requests[0], key, options.reuse)
    address = target.address()
    target.try_first(requests[0], headers)
    clients = options.clients or 0
    settings = Settings(
        address=address,
        server_name=target.host if target.tls else None,
        requests=tuple(whole_request(target, one, headers) for one in requests),
        timeout_s=options.timeout_s,
        max_connections=max(options.max_connections, clients),
        reuse=options.reuse,
    )
    began = datetime.now().astimezone().isoformat(timespec="seconds")
    key_header = {} if key is None else {"Authorization": f"Bearer {key}"}
    with (
        Scraper(target, options.metrics_path, key_header) as scraper,
        Fleet(settings, options.processes or _processes(options.rate or 0)) as fleet,
    ):
        if not scraper.found:
            console.print(f"{target.url}{options.metrics_path}: no metrics of Limbeck's there; going on without")
        test = _Test(options, goal, fleet, scraper, console)
        found = test.search(goal) if options.find_max and goal else None
        if found is None:
            test.once()
    highest = None if found is None else found.rate
    return Result(
        format=FORMAT,
        version=version("limbeck"),
        began=began,
        asking=Asking(
            url=target.url,
            dialect=options.dialect,
            model=options.model,
            texts_a_request=options.texts_a_request,
            pairs=options.pairs,
            texts="built-in sample, which is not your traffic (--texts FILE)"
            if options.texts is None
            else options.texts.name,
            mix=workload.length_mix(texts),
            arrivals=None if options.clients else str(options.arrivals),
            reuse=options.reuse,
            warm_up_s=options.warm_up_s,
            timeout_s=options.timeout_s,
            seed=options.seed,
        ),
        objective=options.slo,
        steps=test.steps,
        maximum=found,
        capacity=None
        if highest is None
        else capacity(highest, options.texts_a_request, options.want_rate, options.price_per_hour),
    )


class _Test:
    """Steps against one server."""

    def __init__(
        self, options: Options, goal: Objective | None, fleet: Fleet, scraper: Scraper, console: Console
    ) -> None:
        self._options, self._goal = options, goal
        self._fleet, self._scraper, self._console = fleet, scraper, console
        self.steps: list[StepResult] = []

    def once(self) -> None:
        """Carry out the one step that was asked for."""
        self._step(self._options.rate, self._options.seconds)

    def search(self, goal: Objective) -> Found:
        """Search for the highest rate that holds the objective."""

        def measure(rate: float, confirming: bool) -> Verdict:
            return self._measure(goal, rate, confirming)

        return find_maximum(measure, self._options.rate or _FIRST_RATE)

    def _measure(self, goal: Objective, rate: float, confirming: bool) -> Verdict:
        seconds = min(max(_LEAST_STEP_S, math.ceil(goal.samples / rate)), _MOST_STEP_S)
        if confirming:
            seconds = max(seconds, self._options.seconds)
        while True:
            outcome = self._step(rate, seconds)
            verdict = goal.judge(outcome)
            more = min(2 * self._fleet.size, _cpus())
            helps = outcome.generator_busy and more > self._fleet.size and not self._options.processes
            if verdict.reason is not Reason.GENERATOR or not helps:
                return verdict
            self._console.print(f"one more try with {more} processes", highlight=False)
            self._fleet.grow(more)

    def _step(self, rate: float | None, seconds: int) -> Outcome:
        options = self._options
        step = Step(seconds, options.warm_up_s, rate, options.clients, options.arrivals, options.seed + len(self.steps))
        load = f"{options.clients} clients" if rate is None else f"{rate:g}"
        with Progress(self._console, load, seconds, self._fleet.size) as progress:
            outcome = self._fleet.measure(step, progress.on_tick)
        verdict = None if self._goal is None else self._goal.judge(outcome)
        self.steps.append(StepResult(outcome, self._scraper.moments(self._fleet.began_s, seconds), verdict))
        if options.find_max:
            self._console.print(step_line(self.steps[-1]), markup=False, highlight=False, soft_wrap=True)
        return outcome


def _texts(options: Options) -> list[Text]:
    if options.texts is None:
        return workload.sample_texts(options.pairs)
    pair_column = options.text_pair_column if options.pairs else None
    return workload.read_texts(options.texts, options.text_column, pair_column, options.seed)


def _api_key(file: Path) -> str:
    key = file.read_text(encoding="utf-8").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise WorkloadError(f"{file}: found no API key, expected one line of ASCII")
    return key


def _processes(rate: float) -> int:
    return max(1, min(math.ceil(rate / _RATE_A_PROCESS), _cpus()))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
