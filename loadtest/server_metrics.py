"""What the server says of itself while it is under load: /metrics, read every second."""

import http.client
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from loadtest.target import Target

_EVERY_S = 1.0
_TIMEOUT_S = 5.0
_QUEUE = "limbeck_queue_entries"
_MEANS = {
    "batch_size": ("limbeck_batch_size", 1.0),
    "inference_ms": ("limbeck_inference_seconds", 1000.0),
    "queue_wait_ms": ("limbeck_queue_wait_seconds", 1000.0),
    "tokenization_ms": ("limbeck_tokenization_seconds", 1000.0),
}
"""Histograms of the service, and what their values are multiplied with."""


@dataclass(frozen=True)
class ServerMoment:
    """The service between two readings: means over what it did in that time, None where it did nothing."""

    at_s: float
    queue_entries: float
    """Entries that waited for a batch when it was read."""
    batch_size: float | None
    inference_ms: float | None
    queue_wait_ms: float | None
    tokenization_ms: float | None


@dataclass(frozen=True)
class _Reading:
    at_s: float
    numbers: dict[str, float]


class Scraper:
    """Reads the metrics in a thread, between the start and the end of `with`."""

    def __init__(self, target: Target, path: str, headers: dict[str, str]) -> None:
        self._target, self._path, self._headers = target, path, headers
        self._readings: list[_Reading] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)
        self.found = self._read()
        """Whether the server has the service's metrics."""

    def __enter__(self) -> Self:
        """Begin to read."""
        if self.found:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading."""
        self._ended.set()
        if self.found:
            self._thread.join(_TIMEOUT_S)

    def moments(self, began_s: float, seconds: int) -> list[ServerMoment]:
        """Return what was read in `seconds` from `began_s` (time.monotonic) on, and forget it."""
        self._read()
        readings, self._readings = self._readings, self._readings[-1:]
        between = [_between(first, second, began_s) for first, second in pairwise(readings)]
        return [one for one in between if 0 <= one.at_s <= seconds + _EVERY_S]

    def _read_on(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._read()

    def _read(self) -> bool:
        """Add a reading; return whether there was one."""
        try:
            status, body = self._target.get(self._path, self._headers, _TIMEOUT_S)
            if status != http.client.OK:
                return False
            numbers = numbers_of(body.decode())
        except (OSError, ValueError, http.client.HTTPException):
            return False  # busy, or another server: the test goes on without
        if _QUEUE not in numbers:
            return False
        self._readings.append(_Reading(time.monotonic(), numbers))
        return True


def numbers_of(text: str) -> dict[str, float]:
    """Return the gauge of the queue, and the sums and counts of the histograms, added up over models."""
    wanted = {_QUEUE} | {f"{name}_{part}" for name, _ in _MEANS.values() for part in ("sum", "count")}
    numbers: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in wanted:
                numbers[sample.name] = numbers.get(sample.name, 0.0) + sample.value
    return numbers


def _between(first: _Reading, second: _Reading, begin_s: float) -> ServerMoment:
    def mean(name: str, factor: float) -> float | None:
        count, total = (second.numbers[key] - first.numbers[key] for key in (f"{name}_count", f"{name}_sum"))
        return factor * total / count if count > 0 else None

    means = {field: mean(*of) for field, of in _MEANS.items()}
    return ServerMoment(at_s=second.at_s - begin_s, queue_entries=second.numbers[_QUEUE], **means)
