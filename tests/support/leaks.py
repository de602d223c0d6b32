"""Watches that no key, text or header value of a test reaches a log of the service, at any level.

Tests need not do anything for it: keys begin with `lk_`, texts are made of the words of the tests' vocabulary, which no
line of the service's log has, and whatever else must stay secret is `secret(…)`. Looked at are the records of the
service in this process, whatever level a test has set, and what servers that tests start write to their standard
output and error. `tests/conftest.py` fails the test.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator

from service.logs import Formatter
from service.masking import mask

_WORD = "unmentionable"
_SECRET = re.compile(
    rf"{_WORD}[\w-]*|lk_[\w-]{{4,}}|(?<![\w/.-])(?:good|bad|great|awful|movie|film|plot|dull)(?![\w/-])", re.IGNORECASE
)
_LOGGERS = ("service", "bundle", "uvicorn", "asyncio", "opentelemetry")
_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z]+ \d+ [\w.]+: ", re.MULTILINE)  # of a server's log


def secret(what: str) -> str:
    """Return a word that no log may have."""
    return f"{_WORD}-{what}"


class Leaks:
    """What was found."""

    def __init__(self) -> None:
        self._format = Formatter().format
        self._found: list[str] = []
        self._listening = False

    def listen(self) -> None:
        """Hear every record of the service's loggers; handlers get those that they would have got."""
        if self._listening:
            return
        self._listening = True
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.DEBUG)
        pass_on = logging.Logger.callHandlers

        def heard(logger: logging.Logger, record: logging.LogRecord) -> None:
            if logger.name.partition(".")[0] in _LOGGERS:
                self.look(self._format(record))
                record.exc_text = None  # the formatter's, which others would take for theirs
                if record.levelno < logging.getLogger().getEffectiveLevel():
                    return
            pass_on(logger, record)

        logging.Logger.callHandlers = heard

    def look(self, text: str) -> None:
        """Look at what a server has written to its log."""
        for line in text.splitlines():
            if found := _SECRET.search(line):
                self._found.append(f"{found[0]!r} in: {line[:300]}")

    def look_at_output(self, text: str) -> None:
        """Look at what a test and its servers have written, of which only logs are watched."""
        if _LINE.search(text):
            self.look(text)
        for line in text.splitlines():
            if line.startswith('{"time":') and '"request_id":' in line:
                self.look_at_request(line)

    def look_at_request(self, line: str) -> None:
        """Look at a line of the request log, which may tell texts, but masked ones alone."""
        told = json.loads(line)
        for text in told.pop("texts", ()):
            if mask(text) != text:
                self._found.append(f"a text that is not masked in: {line[:300]}")
        self.look(json.dumps(told, ensure_ascii=False))

    def take(self) -> list[str]:
        """Return what was found since the last time."""
        found, self._found = self._found, []
        return found

    @contextlib.contextmanager
    def expected(self) -> Iterator[list[str]]:
        """Collect what a test lets out on purpose."""
        before, found = self.take(), []
        yield found
        found += self.take()
        self._found = before


LEAKS = Leaks()
