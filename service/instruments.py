"""Counters, gauges and histograms whose numbers lie on a board, so that any worker can show those of all.

An update costs 0.1 to 0.2 µs; prometheus_client's own takes 0.4 to 0.8 µs, and several in its mode for many processes,
which has no gauges that read a function either. It still writes the text format. Update an instrument in one thread
only, the event loop's.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.board import Board, Key, Numbers, Page, State


class Counter:
    """A number that only grows."""

    def __init__(self, numbers: Numbers, begin: int) -> None:
        self._numbers = numbers
        self._begin = begin

    def inc(self, amount: float = 1) -> None:
        """Add `amount`."""
        self._numbers[self._begin] += amount


class Gauge:
    """A number as it is now."""

    def __init__(self, numbers: Numbers, begin: int) -> None:
        self._numbers = numbers
        self._begin = begin
        self._read: Callable[[], float] | None = None
        self.set(0)  # not what a process that died has left in this slot

    def set(self, value: float) -> None:
        """Take the value."""
        self._numbers[self._begin] = value

    def set_function(self, read: Callable[[], float]) -> None:
        """Take the value from `read` whenever the gauges are refreshed."""
        self._read = read

    def forget(self, read: Callable[[], float]) -> None:
        """Show no value any more, unless another function than `read` has taken over."""
        if self._read == read:
            self._read = None
            self.set(math.nan)

    def refresh(self) -> None:
        """Take the value from the function, if there is one."""
        if self._read is not None:
            self.set(self._read())


class Histogram:
    """How often a value fell into each bucket, and the sum of the values."""

    def __init__(self, numbers: Numbers, begin: int, bounds: Sequence[float]) -> None:
        self._numbers = numbers
        self._begin = begin
        self._bounds = bounds
        self._sum = begin + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose bound is not below it."""
        self._numbers[self._begin + bisect_left(self._bounds, value)] += 1
        self._numbers[self._sum] += value


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(ABC, Generic[Child]):
    """The instruments of one name, by the values of their labels."""

    width = 1
    """How many numbers an instrument has."""

    def __init__(self, page: Page, name: str, text: str, labels: Sequence[str]) -> None:
        self.name = name
        self.text = text
        self.children: dict[Key, Child] = {}
        self._page = page
        self._labels = labels

    def labels(self, *values: str) -> Child:
        """Return the instrument with these values of the labels, in their order."""
        child = self.children.get(values)
        if child is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self.name}: found {len(values)} values, expected {', '.join(self._labels)}")
            child = self.children[values] = self._make(self._page.add((self.name, *values), self.width))
        return child

    @abstractmethod
    def show(self, rows: dict[Key, list[list[float]]]) -> Metric:
        """Return the metric: of each instrument, the numbers of all processes that have it."""

    @abstractmethod
    def _make(self, begin: int) -> Child: ...

    def _named(self, values: Key) -> dict[str, str]:
        return dict(zip(self._labels, values, strict=True))


class CounterFamily(Family[Counter]):
    """Counters; their sum is shown. `name` ends in _total."""

    def show(self, rows: dict[Key, list[list[float]]]) -> Metric:
        """Return the metric."""
        metric = Metric(self.name.removesuffix("_total"), self.text, "counter")
        for values, several in rows.items():
            metric.add_sample(self.name, self._named(values), sum(numbers[0] for numbers in several))
        return metric

    def _make(self, begin: int) -> Counter:
        return Counter(self._page.numbers, begin)


class GaugeFamily(Family[Gauge]):
    """Gauges of processes that live; `merge` makes one number of theirs."""

    def __init__(self, *arguments: Any, merge: Callable[[Iterator[float]], float]) -> None:
        super().__init__(*arguments)
        self._merge = merge

    def show(self, rows: dict[Key, list[list[float]]]) -> Metric:
        """Return the metric."""
        metric = Metric(self.name, self.text, "gauge")
        for values, several in rows.items():
            if known := [numbers[0] for numbers in several if not math.isnan(numbers[0])]:
                metric.add_sample(self.name, self._named(values), self._merge(iter(known)))
        return metric

    def _make(self, begin: int) -> Gauge:
        return Gauge(self._page.numbers, begin)


class HistogramFamily(Family[Histogram]):
    """Histograms with the same buckets; `bounds` ascend."""

    def __init__(self, *arguments: Any, bounds: Sequence[float]) -> None:
        super().__init__(*arguments)
        self._bounds = bounds
        self.width = len(bounds) + 2  # the last bucket has no bound; the last number is the sum of the values

    def show(self, rows: dict[Key, list[list[float]]]) -> Metric:
        """Return the metric."""
        metric = Metric(self.name, self.text, "histogram")
        for values, several in rows.items():
            *buckets, total = map(sum, zip(*several, strict=True))
            labels, so_far = self._named(values), 0.0
            for bound, count in zip((*self._bounds, float("inf")), buckets, strict=True):
                so_far += count
                metric.add_sample(f"{self.name}_bucket", labels | {"le": _bound(bound)}, so_far)
            metric.add_sample(f"{self.name}_count", labels, so_far)
            metric.add_sample(f"{self.name}_sum", labels, total)
        return metric

    def _make(self, begin: int) -> Histogram:
        return Histogram(self._page.numbers, begin, self._bounds)


class Instruments(Collector):
    """The families of one process, and the collector that shows them for all processes together.

    Counters and histograms are summed over all workers, those that died included. Every process must define the same
    families in the same way.
    """

    def __init__(self, board: Board, slot: int) -> None:
        self._board = board
        self._slot = slot
        self._page = board.page(slot)
        self._places: dict[tuple[int, Key], int] = {}  # of slots and rows, where one begins; none ever moves
        self._families: dict[str, CounterFamily | GaugeFamily | HistogramFamily] = {}

    def counter(self, name: str, text: str, *labels: str) -> CounterFamily:
        """Define a counter; `name` ends in _total."""
        family = self._families[name] = CounterFamily(self._page, name, text, labels)
        return family

    def gauge(self, name: str, text: str, *labels: str, merge: Callable[[Iterator[float]], float] = sum) -> GaugeFamily:
        """Define a gauge; `merge` (`sum`, `min`) says what those of several workers are together."""
        family = self._families[name] = GaugeFamily(self._page, name, text, labels, merge=merge)
        return family

    def histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> HistogramFamily:
        """Define a histogram."""
        family = self._families[name] = HistogramFamily(self._page, name, text, labels, bounds=bounds)
        return family

    def refresh(self) -> None:
        """Let the gauges that have a function take its value, for other workers to see."""
        for family in self._families.values():
            if isinstance(family, GaugeFamily):
                for gauge in family.children.values():
                    gauge.refresh()

    def total(self, *key: str) -> float:
        """Return what a counter, by its name and labels, has come to in all workers, those that died included."""
        found = 0.0
        for slot in range(self._board.workers):
            page = self._board.page(slot)
            place = self._places.get((slot, key))
            if place is None:
                row = page.rows().get(key)
                if row is None:
                    continue
                place = self._places[slot, key] = row.start
            found += page.numbers[place]
        return found

    def collect(self) -> Iterator[Metric]:
        """Yield every family with the numbers of all processes."""
        self.refresh()
        rows: dict[str, dict[Key, list[list[float]]]] = {name: {} for name in self._families}
        for slot in range(self._board.workers + 1):
            page = self._board.page(slot)
            alive = slot == self._slot or self._board.state(slot) in (State.READY, State.LEAVING)
            for (name, *values), place in page.rows().items():
                if alive or not isinstance(self._families[name], GaugeFamily):
                    numbers = list(map(float, page.numbers[place.start : place.stop]))
                    rows[name].setdefault(tuple(values), []).append(numbers)
        for name, family in self._families.items():
            yield family.show(rows[name])


def _bound(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]
