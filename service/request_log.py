"""One line of JSON for each request, on standard output; never a key, nor the value of a header but its id.

Texts are there only where an operator asks for them, of a share of the requests, and only after `service.masking`.
Lines are written by a thread of their own: a reader of the log that stands still must not hold up answers. When more
than a few megabytes wait, further lines are dropped and counted.
"""

import collections
import logging
import os
import random
import threading
import time
from datetime import UTC, datetime

import msgspec

from service.engine.tokenization import TextInput
from service.visits import Visit

log = logging.getLogger(__name__)

_MOST_WAITING = 20_000  # lines, of about 300 bytes
_PERIOD_S = 0.2
_MOST_WAITING_CHARACTERS = 4_000_000  # of texts
_MOST_TEXTS = 8  # of one request
_MOST_CHARACTERS = 2000  # that are masked of one text, at 5 µs each at worst
_MARGIN = 64  # characters: no number that the masker knows is longer
_TEXTS_BYTES = 3000  # of one line in JSON
_PIPE_BUF = 4096  # bytes: a pipe that several processes write to keeps such a piece together


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
        self._waiting: collections.deque[tuple[Line, list[str]]] = collections.deque()
        self._taken_in = 0  # characters of texts; the event loop's number
        self._done_with = 0  # the thread's
        self._encode = msgspec.json.Encoder().encode
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="limbeck-request-log", daemon=True)
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
        texts = [_cut(text) for text in (visit.texts or ())[:_MOST_TEXTS]]
        size = sum(map(len, texts))
        if self._taken_in - self._done_with + size > _MOST_WAITING_CHARACTERS:
            texts, size = [], 0
        self._taken_in += size
        self._waiting.append((line, texts))

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._closing.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        piece = b""
        for line, texts in lines:
            if texts:
                self._done_with += sum(map(len, texts))
                line.texts = self._masked(texts)
            encoded = self._encode(line) + b"\n"
            if len(piece) + len(encoded) > _PIPE_BUF:
                self._write(piece)
                piece = b""
            piece += encoded
        self._write(piece)

    def _masked(self, texts: list[str]) -> list[str]:
        """Return as much of the texts as a line holds, personal data masked."""
        from service.masking import mask  # its tables of numbering plans take 10 MB

        kept, left = [], _TEXTS_BYTES
        for text in texts:
            try:
                masked = mask(text)
                if len(text) == _MOST_CHARACTERS:  # half a number may stand at its end
                    masked = masked[:-_MARGIN]
            except Exception:  # a fault of ours: better no text than one that is not masked
                log.exception("a text could not be masked")
                continue
            while masked and len(self._encode(masked)) > left:
                masked = masked[: len(masked) * 3 // 4]
            if masked:
                kept.append(masked)
                left -= len(self._encode(masked)) + 1
        return kept

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # nobody reads any more
            self._unread += data.count(b"\n")


def _cut(text: TextInput) -> str:
    whole = text if isinstance(text, str) else " | ".join(text)
    return whole[:_MOST_CHARACTERS]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
