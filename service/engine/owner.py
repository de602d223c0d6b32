"""The one owner of a model's queue: every decision is a step of it, on one event loop, one after the other."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Owner:
    """Runs steps on an event loop until one of them raises, or until it is stopped.

    A step that raises leaves decisions half made: the owner is dead from then on, takes no further steps and calls
    `died`. Only `soon_from_thread` may be called from other threads.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, died: Callable[[], None]) -> None:
        self._loop = loop
        self._died = died
        self.alive = True

    def soon(self, step: Callable[..., None]) -> None:
        """Run a step in the loop's next turn."""
        self._loop.call_soon(self._run, step)

    def soon_from_thread(self, step: Callable[..., None], *arguments: Any) -> None:
        """Let the loop run a step with what a thread has made; dropped when the loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._run, step, *arguments)

    def later(self, delay_s: float, step: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
        """Run a step after `delay_s` seconds, unless the handle is cancelled."""
        return self._loop.call_later(delay_s, self._run, step, *arguments)

    def stop(self) -> None:
        """Take no further steps."""
        self.alive = False

    def die(self, reason: str, error: Exception | None = None) -> None:
        """End for a reason that is no one's wish."""
        if self.alive:
            self.alive = False
            log.critical("%s; readiness is false from now on", reason, exc_info=error)
            self._died()

    def _run(self, step: Callable[..., None], *arguments: Any) -> None:
        if not self.alive:
            return
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for an owner that stands still
            self.die("the owner of the queue died", error)
