"""The open connections of a process: how many there may be, and a look at all of them every second.

One timer for all, because a timer for each request would cost more than the rest of reading it.
"""

import asyncio
import logging
import time
from typing import Protocol

from service.settings import Settings

log = logging.getLogger(__name__)

_PERIOD_S = 1.0
_MOST_LEAVING = 128
"""Of the files that may be open beside the connections that count, these may be half."""


class Watched(Protocol):
    """A connection."""

    def look(self, now_s: float) -> None:
        """End what takes too long; `now_s` is on the clock `time.monotonic`."""


class Connections:
    """One for each app."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._open: set[Watched] = set()
        self._leaving: set[Watched] = set()
        self._looking = False

    def add(self, connection: Watched, loop: asyncio.AbstractEventLoop, *, bounded: bool) -> bool:
        """Watch a connection from now on; return False when it is one of those that are `bounded` and too many."""
        self._open.add(connection)
        if not self._looking:
            self._looking = True
            loop.call_later(_PERIOD_S, self._look, loop)
        return not bounded or len(self._open) <= self.settings.max_connections

    def leave(self, connection: Watched) -> bool:
        """Count a connection no more: it has its last answer. Return whether there is room for it to leave in peace."""
        self._open.discard(connection)
        self._leaving.add(connection)
        return len(self._leaving) <= _MOST_LEAVING

    def discard(self, connection: Watched) -> None:
        """Watch a connection no more: it is gone."""
        self._open.discard(connection)
        self._leaving.discard(connection)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = time.monotonic()
        for connection in (*self._open, *self._leaving):
            try:
                connection.look(now_s)
            except Exception:  # a fault of ours; the other connections are to be looked at all the same
                log.exception("a connection could not be looked at")
        self._looking = bool(self._open or self._leaving)
        if self._looking:
            loop.call_later(_PERIOD_S, self._look, loop)
