"""A process that generates load: it gets plans through a pipe and answers with what it saw, second by second."""

import asyncio
import contextlib
import gc
import os
import resource
import select
import selectors
import signal
import sys
from multiprocessing.connection import Connection as Pipe
from typing import Any

from loadtest.generator import Generator
from loadtest.messages import READY, Plan, Settings

if sys.platform == "linux":

    class _PreciseSelector(selectors.EpollSelector):
        """Waits microseconds. epoll waits whole milliseconds, and so do asyncio and uvloop, which stand on it: requests
        that leave up to a millisecond late make a fast server look slow.
        """

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait as asked, then take what is ready."""
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

else:
    _PreciseSelector = selectors.DefaultSelector  # kqueue waits nanoseconds


def precise_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose timers do not wait for the next whole millisecond."""
    return asyncio.SelectorEventLoop(_PreciseSelector())


def main(pipe: Pipe, settings: Settings) -> None:
    """Carry out plans until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's to handle
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    with (
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),  # the command has ended
        asyncio.Runner(loop_factory=precise_loop) as runner,
    ):
        runner.run(_serve(pipe, settings))


async def _serve(pipe: Pipe, settings: Settings) -> None:
    asyncio.get_running_loop().set_exception_handler(_end)
    generator = Generator(settings, pipe.send)
    pipe.send(READY)
    try:
        while True:
            plan: Plan = pipe.recv()  # nothing else is to be done between steps
            # what lives now stays: the collector need not look at it while requests wait for their time
            gc.collect()
            gc.freeze()
            await generator.run(plan)
    finally:
        generator.close()


def _end(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End the process when a step of its own failed: the command sees that, and would wait for a lost step for ever."""
    if "transport" in context:  # a connection's trouble, which is counted
        return
    if not isinstance(context.get("exception"), BrokenPipeError):
        loop.default_exception_handler(context)
    os._exit(1)
