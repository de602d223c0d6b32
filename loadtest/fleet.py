"""The processes that generate load: started, told what to do, listened to."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self, cast

from loadtest import worker
from loadtest.arrivals import Arrivals
from loadtest.errors import GeneratorError
from loadtest.messages import Plan, Settings, Tick
from loadtest.outcome import Collector, Outcome

_CONTEXT = multiprocessing.get_context("spawn")
_AHEAD_S = 0.1
"""A plan is there before its first request is due."""
_STOP_S = 5.0
_GRACE_S = 30.0
_ENDED = "a process that generates load ended; what it said stands above"

OnTick = Callable[[int, Tick], None]
"""Called with the number of a process and what it saw in one second."""


@dataclass(frozen=True)
class Step:
    """What is asked of all processes together: `rate` requests a second, or `clients` in a closed loop."""

    seconds: int
    warm_up_s: float
    rate: float | None = None
    clients: int | None = None
    arrivals: Arrivals = Arrivals.POISSON
    seed: int = 0


class Fleet:
    """Some processes that generate load together; they are gone at the end of `with`."""

    def __init__(self, settings: Settings, processes: int) -> None:
        self._settings = settings
        self._members: list[tuple[SpawnProcess, Connection]] = []
        self.began_s = 0.0
        """When the measured part of the last step began, by time.monotonic."""
        self.grow(processes)

    def __enter__(self) -> Self:
        """Return the fleet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        for process, pipe in self._members:
            pipe.close()
            process.terminate()
        for process, _ in self._members:
            process.join(_STOP_S)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self._members)

    def grow(self, processes: int) -> None:
        """Start more, so that there are so many."""
        started = []
        while len(self._members) < processes:
            mine, its = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=worker.main, args=(its, self._settings), daemon=True)
            with _uninterrupted():  # a process that is told half of what it needs to know ends with a traceback
                process.start()
                its.close()
                self._members.append((process, mine))
            started.append(mine)
        for pipe in started:
            self._receive(pipe)  # READY

    def measure(self, step: Step, on_tick: OnTick) -> Outcome:
        """Carry out a step and return what it measured; raises GeneratorError when a process ends."""
        pipes = {pipe: number for number, (_, pipe) in enumerate(self._members)}
        self.began_s = start_s = time.monotonic() + _AHEAD_S + step.warm_up_s
        for pipe, number in pipes.items():
            self._send(pipe, self._plan(step, start_s, number))
        collector = Collector(step.seconds)
        limit_s = start_s + step.seconds + self._settings.timeout_s + _GRACE_S
        running = set(pipes)
        while running:
            ready = cast(list[Connection], wait(list(running), timeout=max(0.0, limit_s - time.monotonic())))
            if not ready:
                raise GeneratorError("a process that generates load does not answer: is the machine out of memory?")
            for pipe in ready:
                tick: Tick = self._receive(pipe)
                collector.add(pipes[pipe], tick)
                on_tick(pipes[pipe], tick)
                if tick.last:
                    running.remove(pipe)
        return collector.outcome(step.rate, step.clients, self.size)

    def _plan(self, step: Step, start_s: float, number: int) -> Plan:
        clients = step.clients or 0
        return Plan(
            start_s=start_s,
            warm_up_s=step.warm_up_s,
            seconds=step.seconds,
            rate=step.rate or 0.0,
            clients=clients // self.size + (number < clients % self.size),
            arrivals=step.arrivals,
            seed=step.seed,
            share=number,
            shares=self.size,
        )

    def _send(self, pipe: Connection, plan: Plan) -> None:
        try:
            pipe.send(plan)
        except OSError as error:
            raise GeneratorError(_ENDED) from error

    def _receive(self, pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError) as error:
            raise GeneratorError(_ENDED) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the end of `with`. What is started meanwhile never sees it: the fleet ends it itself.

    What is started inherits that the signal is blocked; but a process with other threads gets it all the same, because
    one of those takes it and Python then interrupts the main one. So it is noted meanwhile and raised again.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first process would start it, and it unblocks the signal
    seen: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if seen:
            signal.raise_signal(signal.SIGINT)
