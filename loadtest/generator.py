"""Generates the load of one process: sends at the times of a plan, and says every second what it saw."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

from loadtest.arrivals import times
from loadtest.connections import Pool
from loadtest.histogram import new_histogram, record
from loadtest.messages import GOOD, TIMEOUT, Plan, Settings, Tick

_MOST_AT_ONCE = 32
"""Requests that are sent before answers are read again, however late the process is."""
_EXPIRE_EVERY_S = 0.1
_DRAINED_EVERY_S = 0.01
_PAUSE_AFTER_ERROR_S = 0.05
"""Of a client in a closed loop: a server that refuses must not be asked as fast as the processor can."""


class Generator:
    """Runs steps, one after the other, over connections that stay open between them."""

    def __init__(
        self, settings: Settings, tell: Callable[[Tick], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._tell = tell
        self._pool = Pool(settings, self._done)

    async def run(self, plan: Plan) -> None:
        """Send what the plan says and wait until every request has an outcome."""
        self._loop = asyncio.get_running_loop()
        self._plan = plan
        self._end_s = plan.start_s + plan.seconds
        self._second = -math.ceil(plan.warm_up_s)
        self._cpu_s = time.process_time()
        self._clear()
        self._sent_all = asyncio.Event()
        self._pool.start_at(plan.seed + plan.share * len(self._settings.requests) // plan.shares)
        self._ticking = self._loop.call_at(plan.start_s + self._second + 1, self._tick)
        expiring = self._loop.create_task(self._expire())
        try:
            first_s = plan.start_s - plan.warm_up_s
            if plan.rate:
                offsets = times(plan.arrivals, plan.rate, plan.seed, plan.share, plan.shares)
                self._times = (first_s + offset for offset in offsets)
                self._next_s = next(self._times)
                self._loop.call_at(self._next_s, self._send_due)
            else:
                self._loop.call_at(first_s, self._start_clients)
            await self._sent_all.wait()
            while self._pool.in_flight:
                await asyncio.sleep(_DRAINED_EVERY_S)
        finally:
            self._ticking.cancel()
            expiring.cancel()
        self._flush(last=True)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _send_due(self) -> None:
        """Send what is due, and come back when the next is."""
        now_s = self._clock()
        for _ in range(_MOST_AT_ONCE):
            if self._next_s > now_s or self._next_s >= self._end_s:
                break
            if self._next_s >= self._plan.start_s:
                record(self._lag, now_s - self._next_s)
            self._pool.ask(self._next_s)
            self._next_s = next(self._times)
            now_s = self._clock()
        if self._next_s < self._end_s:
            self._loop.call_at(self._next_s, self._send_due)
        else:
            self._sent_all.set()

    def _start_clients(self) -> None:
        for _ in range(self._plan.clients):
            self._pool.ask(self._clock())
        self._loop.call_at(self._end_s, self._sent_all.set)

    def _done(self, scheduled_s: float, kind: str) -> None:
        """Count a request's outcome; a client of a closed loop sends its next."""
        now_s = self._clock()
        if kind == GOOD:
            self._now.answers += 1
        if scheduled_s >= self._plan.start_s:
            self._now.outcomes[kind] = self._now.outcomes.get(kind, 0) + 1
            # a refusal is no answer, and a fast one must not make the latencies look better
            if kind in (GOOD, TIMEOUT):
                record(self._latency, now_s - scheduled_s)
        if not self._plan.rate:
            if kind == GOOD:
                self._loop.call_soon(self._ask_again)
            else:
                self._loop.call_later(_PAUSE_AFTER_ERROR_S, self._ask_again)

    def _ask_again(self) -> None:
        if (now_s := self._clock()) < self._end_s:
            self._pool.ask(now_s)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self._pool.expire(self._clock())

    def _tick(self) -> None:
        self._flush()
        # a second that the process slept through had nothing
        self._second = max(self._second + 1, math.floor(self._clock() - self._plan.start_s))
        self._ticking = self._loop.call_at(self._plan.start_s + self._second + 1, self._tick)

    def _flush(self, last: bool = False) -> None:
        tick = self._now
        tick.second, tick.last, tick.in_flight = self._second, last, self._pool.in_flight
        cpu_s = time.process_time()
        tick.busy_s, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        tick.latency, tick.lag = self._latency.encode(), self._lag.encode()
        self._clear()
        self._tell(tick)

    def _clear(self) -> None:
        self._now = Tick(self._second)
        self._latency: Any = new_histogram()
        self._lag: Any = new_histogram()
