"""Stops work that nobody waits for any more, at next to no cost for requests that are answered quickly."""

import asyncio
from typing import Any, TypeVar

from starlette.types import Receive

from service.errors import ClientGoneError

T = TypeVar("T")

_PERIOD_S = 0.02


class DisconnectWatch:
    """Cancels the work of clients that close the connection; one for each app.

    Watching takes a task, which costs more than the rest of a small request. So a request is watched from the second
    tick of a common timer on: whoever leaves is noticed after 20 to 40 ms at the latest, and a request that is
    answered before that costs an entry in a dictionary.
    """

    def __init__(self) -> None:
        self._in_flight: dict[asyncio.Future[Any], Receive] = {}
        self._one_tick_old: list[asyncio.Future[Any]] = []
        self._watchers: dict[asyncio.Future[Any], asyncio.Task[None]] = {}
        self._left: set[asyncio.Future[Any]] = set()
        self._ticking = False

    async def result(self, work: asyncio.Future[T], receive: Receive) -> T:
        """Return the result of `work`, or cancel it and raise ClientGoneError when the client closes the connection.

        The request's body must have been read from `receive`.
        """
        self._in_flight[work] = receive
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(_PERIOD_S, self._tick)
        try:
            return await work
        except asyncio.CancelledError:
            if work in self._left:
                raise ClientGoneError("the client closed the connection") from None
            raise
        finally:
            del self._in_flight[work]
            self._left.discard(work)
            if self._watchers and (watcher := self._watchers.pop(work, None)):
                watcher.cancel()

    def _tick(self) -> None:
        for work in self._one_tick_old:
            if work in self._in_flight and work not in self._watchers:
                self._watchers[work] = asyncio.create_task(self._watch(work, self._in_flight[work]))
        self._one_tick_old = list(self._in_flight)
        self._ticking = bool(self._in_flight)
        if self._ticking:
            asyncio.get_running_loop().call_later(_PERIOD_S, self._tick)

    async def _watch(self, work: asyncio.Future[Any], receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not work.done():
            self._left.add(work)
            work.cancel()
