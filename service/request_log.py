"""One line of JSON for each request, on standard output; never a text, a key or the value of a header.

Lines are written by a thread of their own: a reader of the log that stands still must not hold up answers. When more
than a few megabytes wait, further lines are dropped and counted.
"""

import collections
import os
import threading
import time
from datetime import UTC, datetime

import msgspec

from service.visits import Visit

_MOST_WAITING = 20_000  # lines, of about 300 bytes
_PERIOD_S = 0.2


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


class RequestLog:
    """Writes lines to a file descriptor. `add` them in one thread only."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._refused = 0  # too many waited; the event loop's number
        self._unread = 0  # nobody took them; the thread's
        self._waiting: collections.deque[Line] = collections.deque()
        self._encode = msgspec.json.Encoder().encode
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="limbeck-request-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return self._refused + self._unread

    def add(self, visit: Visit, method: str, status: int, took_s: float) -> None:
        """Tell of a request that was answered."""
        if len(self._waiting) >= _MOST_WAITING:
            self._refused += 1
            return
        self._waiting.append(
            Line(
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
        )

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._closing.set()
        self._thread.join(2)

    def _write(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        data = memoryview(b"".join(self._encode(line) + b"\n" for line in lines))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody reads any more
            self._unread += len(lines)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
