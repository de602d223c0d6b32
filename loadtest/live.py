"""What is seen while a step runs: a line that changes on a terminal, a line now and then in a log."""

import time
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.live import Live

from loadtest import histogram
from loadtest.messages import GOOD, Tick

_LOG_EVERY_S = 15.0


class Progress:
    """Shows each second of a step as soon as every process has told of it."""

    def __init__(self, console: Console, asked: str, seconds: int, processes: int) -> None:
        self._console = console
        self._asked, self._seconds, self._processes = asked, seconds, processes
        self._ticks: dict[int, dict[int, Tick]] = {}
        self._errors = 0
        self._shown_s = time.monotonic()
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the changing line away."""
        if self._live is not None:
            self._live.stop()

    def on_tick(self, process: int, tick: Tick) -> None:
        """Take in what one process saw."""
        self._errors += sum(count for kind, count in tick.outcomes.items() if kind != GOOD)
        if tick.last:
            return
        of_second = self._ticks.setdefault(tick.second, {})
        of_second[process] = tick
        if len(of_second) == self._processes:
            self._show(tick.second, list(self._ticks.pop(tick.second).values()))

    def _show(self, second: int, ticks: list[Tick]) -> None:
        if self._live is None and time.monotonic() - self._shown_s < _LOG_EVERY_S:
            return
        self._shown_s = time.monotonic()
        counts = np.sum([histogram.counts_of(tick.latency) for tick in ticks], axis=0)
        p50_ms, p99_ms = (histogram.percentile_ms(counts, share) for share in (0.5, 0.99))
        latency = "no answers" if np.isnan(p50_ms) else f"p50 {p50_ms:,.1f} ms, p99 {p99_ms:,.1f} ms"
        if second < 0:
            latency = "warming up"
        if second >= self._seconds:
            latency += ", waiting for the last answers"
        line = (
            f"{min(max(second + 1, 0), self._seconds)}/{self._seconds} s: {sum(tick.answers for tick in ticks):,} "
            f"answers/s of {self._asked}, {latency}, {self._errors:,} errors, "
            f"{sum(tick.in_flight for tick in ticks):,} in flight"
        )
        if self._live is None:
            self._console.print(line, soft_wrap=True, highlight=False)
        else:
            self._live.update(line, refresh=True)
