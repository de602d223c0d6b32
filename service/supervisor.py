"""Keeps worker processes running behind one port: forks them, hands them connections, replaces those that die.

The supervisor accepts every connection and passes it to the next ready worker in turn, so that few connections, each
kept open, are spread evenly; sockets that the kernel shares out (SO_REUSEPORT, or one that all accept from) leave one
worker with most of them now and then. The channel that carries connections is the worker's lifeline too: when it is
closed, because of a signal or because the supervisor is gone, the worker answers what it has and ends.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.board import Board, Seat, State
from service.metrics import Metrics
from service.wishes import WishFolder

log = logging.getLogger(__name__)

Work = Callable[[Seat, socket.socket], int]
"""What a worker does with its seat and its channel; returns its exit status."""

CANNOT_START = 1
"""Exit status of a worker that has said why nothing can be served; another would fail in the same way."""

PAUSE_FOR_MENDING_S = 5.0
"""Before a worker starts again that found bundles it cannot load, while others go on."""

_MOST_DEATHS = 5  # within _RECENT_S; then something is wrong that new processes do not mend
_RECENT_S = 60
_FIRST_PAUSE_S = 0.1  # before a dead worker is replaced; doubled with each recent death
_BACKLOG = 2048
_LOOK_S = 0.05  # how often the board is read while workers start
_PATIENCE_S = 5  # for workers that have used up their own time for shutting down


@dataclass
class _Worker:
    slot: int
    process: int
    channel: socket.socket


class Supervisor:
    """`workers` processes that do `work`. `listeners` are bound; nothing else may run in this process."""

    def __init__(
        self,
        workers: int,
        listeners: Sequence[socket.socket],
        work: Work,
        *,
        shutdown_timeout_s: float,
        folder: Path | None = None,
    ) -> None:
        self._board = Board(workers)
        self._folder = folder
        self._restarts = Metrics(self._board, workers).worker_restarts
        self._listeners = listeners
        self._work = work
        self._shutdown_timeout_s = shutdown_timeout_s
        self._alive: dict[int, _Worker] = {}  # by slot
        self._due_s: dict[int, float] = {0: 0.0}  # slots without a process, and when they get one
        self._deaths_s: list[float] = []
        self._turn = 0
        self._status: int | None = None  # the exit status, once it is decided to stop
        self._give_up_s = 0.0
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Run until a signal, or until workers cannot be kept running; return the process's exit status.

        The first worker proves that the bundles load before the others begin. A second signal ends all at once.
        """
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._selector.register(woken, selectors.EVENT_READ)
        for listener in self._listeners:
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        while self._status is None or self._alive:
            for key, _ in self._selector.select(self._pause_s()):
                if key.fileobj is woken:
                    self._handle_signals(woken.recv(64))
                elif self._alive:
                    self._accept()
                else:
                    time.sleep(_LOOK_S)  # what waits is accepted once there is somebody to take it
            self._reap()
            self._look()
        return self._status

    def _pause_s(self) -> float | None:
        if self._status is not None or not self._board.opened:
            return _LOOK_S
        return max(0.0, min(self._due_s.values()) - time.monotonic()) if self._due_s else None

    def _handle_signals(self, numbers: bytes) -> None:
        if signal.SIGHUP in numbers and self._folder is not None:
            try:
                WishFolder(self._folder, self._board.workers).ask()
            except OSError as error:
                log.error("SIGHUP could not be passed on: %s", error)
        asked = [number for number in numbers if number in (signal.SIGTERM, signal.SIGINT)]
        if asked and self._status is not None:
            self._kill()
        elif asked:
            self._stop(0)
            if len(asked) > 1:
                self._kill()

    def _accept(self) -> None:
        """Pass on connections that wait."""
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_BACKLOG):  # not for ever: signals are waiting too
                    connection, _ = listener.accept()
                    with connection:
                        self._pass_on(connection)

    def _pass_on(self, connection: socket.socket) -> None:
        """Give a connection to the next ready worker; to one that starts only when none is ready."""
        self._turn += 1
        slots = sorted(self._alive, key=lambda slot: (slot - self._turn) % self._board.workers)
        slots.sort(key=lambda slot: self._board.state(slot) is not State.READY)
        for slot in slots:
            with contextlib.suppress(OSError):  # it has just died, or its channel is full
                socket.send_fds(self._alive[slot].channel, [b"c"], [connection.fileno()])
                return

    def _look(self) -> None:
        """Start the workers that are due, and open the service once all are ready."""
        now_s = time.monotonic()
        if self._status is not None:
            if now_s > self._give_up_s:
                self._kill()
            return
        for slot in [slot for slot, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[slot]
            self._start(slot)
        ready = sum(self._board.state(slot) is State.READY for slot in self._alive)
        if ready and not self._board.opened:
            missing = set(range(self._board.workers)) - set(self._alive) - set(self._due_s)
            self._due_s |= dict.fromkeys(missing, now_s)
            if ready == self._board.workers:
                self._board.open()
                log.info("%d workers are ready", ready)

    def _start(self, slot: int) -> None:
        ours, theirs = socket.socketpair()
        self._board.report(slot, State.STARTING)
        process = os.fork()
        if process == 0:
            self._be_worker(slot, ours, theirs)
        theirs.close()
        ours.setblocking(False)
        self._alive[slot] = _Worker(slot, process, ours)

    def _be_worker(self, slot: int, ours: socket.socket, theirs: socket.socket) -> None:
        """Do a worker's work in a process that was just forked, and end it; never returns."""
        status = os.EX_SOFTWARE
        try:
            signal.set_wakeup_fd(-1)
            for number in (
                signal.SIGINT,
                signal.SIGHUP,
            ):  # a terminal sends them to the supervisor, too, whose they are
                signal.signal(number, signal.SIG_IGN)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # A copy of another worker's channel would keep that worker alive after the supervisor's death.
            for channel in (ours, *self._listeners, *(worker.channel for worker in self._alive.values())):
                channel.close()
            self._selector.close()
            status = self._work(Seat(self._board, slot, self._folder), theirs)
        except BaseException as error:
            log.exception("worker %d failed: %s", slot, error)
        finally:
            logging.shutdown()
            os._exit(status)  # not through the supervisor's stack

    def _reap(self) -> None:
        """See which workers have ended, and decide what follows."""
        for slot, worker in list(self._alive.items()):
            process, ended = os.waitpid(worker.process, os.WNOHANG)
            if not process:
                continue
            self._board.report(slot, State.ABSENT)
            worker.channel.close()
            del self._alive[slot]
            status = os.waitstatus_to_exitcode(ended)
            if self._status is not None:
                continue
            if status == CANNOT_START and self._board.opened:
                self._due_s[slot] = time.monotonic() + PAUSE_FOR_MENDING_S  # the others go on with what they have
            elif status == CANNOT_START:
                self._stop(CANNOT_START)
            else:
                self._replace(slot, worker.process, status)

    def _replace(self, slot: int, process: int, status: int) -> None:
        now_s = time.monotonic()
        self._deaths_s = [then_s for then_s in self._deaths_s if now_s - then_s < _RECENT_S] + [now_s]
        why = f"by signal {-status}" if status < 0 else f"with status {status}"
        if len(self._deaths_s) > _MOST_DEATHS:
            log.critical("worker %d (process %d) ended %s, the last of too many; giving up", slot, process, why)
            self._stop(1)
            return
        pause_s = _FIRST_PAUSE_S * 2 ** (len(self._deaths_s) - 1)
        self._restarts.inc()
        self._due_s[slot] = now_s + pause_s
        log.error("worker %d (process %d) ended %s; a new one starts in %.1f s", slot, process, why, pause_s)

    def _stop(self, status: int) -> None:
        """Close the port after the connections that wait have been passed on, and let the workers finish."""
        self._status = status
        self._give_up_s = time.monotonic() + self._shutdown_timeout_s + _PATIENCE_S
        self._accept()
        for listener in self._listeners:
            self._selector.unregister(listener)
            listener.close()
        for worker in self._alive.values():
            worker.channel.close()

    def _kill(self) -> None:
        for worker in self._alive.values():
            os.kill(worker.process, signal.SIGKILL)
