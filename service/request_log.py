"""One line of JSON for each request, on standard output; never a key, nor the value of a header but its id.

Texts are there only where an operator asks for them, of a share of the requests, and only after `service.masking`.
Lines are written by a thread of their own: a reader of the log that stands still must not hold up answers. When more
than a few megabytes wait, further lines are dropped and counted.
"""

import collections
import os
import random
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from service.engine.tokenization import TextInput
from service.visits import Visit

_MOST_WAITING = 20_000  # lines, of about 300 bytes
_PERIOD_S = 0.2
_MOST_TEXTS = 16  # of one request
_MOST_CHARACTERS = 2000  # of one text: masking takes 5 µs a character at worst


class Line(msgspec.Struct, omit_defaults=True):
    """What is told of a request. Durations are milliseconds; `queue_ms` and `inference_ms` of its slowest input."""

    time: datetime
    request_id: str
    method: str
    route: str
    status: int
    duration_ms: float
    dialect: str = ""
    model: str = ""
    version: str = ""
    key: str = ""
    error: str = ""
    inputs: int = 0
    tokens: int = 0
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    texts: list[str] = []  # msgspec makes a new list for each line


class RequestLog:
    """Writes lines to a file descriptor. `add` them in one thread only. `texts_share` of the requests tell texts."""

    def __init__(self, texts_share: float = 0.0, descriptor: int = 1) -> None:
        self._texts_share = texts_share
        self._descriptor = descriptor
        self._refused = 0  # too many waited; the event loop's number
        self._unread = 0  # nobody took them; the thread's
        self._waiting: collections.deque[tuple[Line, Sequence[TextInput]]] = collections.deque()
        self._encode = msgspec.json.Encoder().encode
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="limbeck-request-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return self._refused + self._unread

    def wants_texts(self) -> bool:
        """Say, by chance, whether a request's texts are to be told."""
        return self._texts_share > 0 and random.random() < self._texts_share  # noqa: S311 - a sample

    def add(self, visit: Visit, method: str, status: int, took_s: float) -> None:
        """Tell of a request that was answered."""
        if len(self._waiting) >= _MOST_WAITING:
            self._refused += 1
            return
        line = Line(
            datetime.fromtimestamp(time.time(), UTC),
            visit.request_id,
            method,
            visit.route,
            status,
            _ms(took_s),
            visit.dialect,
            visit.model,
            visit.version,
            "" if visit.caller is None else visit.caller.id,
            visit.error,
            visit.inputs,
            visit.tokens,
            _ms(visit.queue_s),
            _ms(visit.inference_s),
        )
        self._waiting.append((line, visit.texts or ()))

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._closing.set()
        self._thread.join(2)

    @staticmethod
    def _masked(text: TextInput) -> str:
        from service.masking import mask  # its tables of numbering plans take 10 MB

        whole = text if isinstance(text, str) else " | ".join(text)
        # cut after masking what is cut through, too: half a card number must not stay
        return mask(whole[: 2 * _MOST_CHARACTERS])[:_MOST_CHARACTERS]

    def _write(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for line, texts in lines:
            if texts:
                line.texts = [self._masked(text) for text in texts[:_MOST_TEXTS]]
        data = memoryview(b"".join(self._encode(line) + b"\n" for line, _ in lines))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody reads any more
            self._unread += len(lines)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
