"""The service's own log, on standard error. What exceptions say does not reach it.

Messages of foreign exceptions quote what they failed on: a text, a header, half a request's body. So a traceback here
tells the kinds of the errors and the lines that they came through. Where a message cannot hold a text, because whoever
raised it only sees paths or token ids, the line that is logged has it.
"""

import asyncio
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
_ARGUMENTS = re.compile(r"<|\((?!\))")

_ErrorInfo = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)  # as logging has it


class Formatter(logging.Formatter):
    """Writes records in the service's form."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def formatException(self, ei: _ErrorInfo) -> str:  # noqa: N802 - logging's name
        """Return a traceback without messages."""
        return "" if ei[1] is None else "".join(_story(ei[1], set())).rstrip()


def configure(level: str) -> None:
    """Log to standard error from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def report_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught on the event loop, without the arguments and results that its own report shows."""
    message = _ARGUMENTS.split(context.get("message") or "unhandled exception on the event loop")[0]
    log.error("%s", message, exc_info=context.get("exception"))


def _story(error: BaseException, told: set[int]) -> Iterator[str]:
    """Yield an error's traceback, those of the errors behind it first."""
    told.add(id(error))
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if behind is not None and id(behind) not in told:
        yield from _story(behind, told)
        yield "\nwhich led to\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    kind = type(error)
    number = f": {error.strerror}" if isinstance(error, OSError) and error.errno else ""
    yield f"{kind.__module__}.{kind.__qualname__}{number}\n".removeprefix("builtins.")
    for one in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _story(one, told)
