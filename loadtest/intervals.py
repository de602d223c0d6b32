"""95 % intervals of what a load test measures.

Latencies of one run resemble their neighbors: a queue that is long now is long a moment later. An interval that takes
them for independent is too narrow, so that of a percentile also resamples whole blocks of time, and is the wider of
both. What differs from one run to the next no interval of a single run knows.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest.histogram import Counts, bucket_values_us

_Z = 1.959964  # normal quantile of 97.5 %
_RESAMPLES = 1000
_LEAST_BLOCKS = 8
_CHUNK = 50  # resamples at a time, so that memory stays small

Interval = tuple[float, float]


def percentile_intervals_ms(blocks: NDArray[np.int64], shares: Sequence[float]) -> list[Interval]:
    """Return the intervals of percentiles from counts (blocks of time, buckets), in milliseconds.

    An end is infinite where the percentile lies so near the maximum that the sample has no bound for it; nan if empty.
    """
    if not blocks.sum():
        return [(math.nan, math.nan)] * len(shares)
    found = [_by_rank(blocks.sum(axis=0), share) for share in shares]
    if len(blocks) < _LEAST_BLOCKS:
        return found
    resampled = _by_blocks(blocks, shares)
    return [(min(one[0], other[0]), max(one[1], other[1])) for one, other in zip(found, resampled, strict=True)]


def _by_rank(counts: Counts, share: float) -> Interval:
    """Distribution-free, from order statistics (Hahn and Meeker 1991, Statistical Intervals, 5.2; normal ranks)."""
    total = int(counts.sum())
    spread = _Z * math.sqrt(total * share * (1 - share))
    first, last = math.floor(total * share - spread), math.ceil(total * share + spread) + 1
    below = np.cumsum(counts)
    values = bucket_values_us()
    low = float(values[np.searchsorted(below, max(1, first))]) / 1000
    high = math.inf if last > total else float(values[np.searchsorted(below, last)]) / 1000
    return low, high


def _by_blocks(blocks: NDArray[np.int64], shares: Sequence[float]) -> list[Interval]:
    """Percentile bootstrap of blocks (Künsch 1989): blocks are drawn with replacement."""
    used = np.flatnonzero(blocks.any(axis=0))
    counts, values = blocks[:, used], bucket_values_us()[used]
    draw = np.random.default_rng(0)
    found: list[list[float]] = [[] for _ in shares]
    for _ in range(_RESAMPLES // _CHUNK):
        weights = draw.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=_CHUNK)  # (R, blocks)
        # of integers: no threads, which would take the processors from what is measured
        below = np.cumsum(weights @ counts, axis=1)  # (R, values)
        below = below[below[:, -1] > 0]
        for share, each in zip(shares, found, strict=True):
            ranks = np.maximum(1, np.ceil(np.round(share * below[:, -1:], 6)))
            each += values[np.argmax(below >= ranks, axis=1)].tolist()
    ends = [np.quantile(each, [0.025, 0.975], method="inverted_cdf") / 1000 for each in found]
    return [(float(low), float(high)) for low, high in ends]


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Return Student's interval of the mean; of one value, nothing is known of its spread."""
    count = len(values)
    if count < 2:
        return -math.inf, math.inf
    half = _student(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return float(values.mean()) - half, float(values.mean()) + half


def _student(freedom: int) -> float:
    """Quantile of 97.5 % of Student's t (Abramowitz and Stegun 26.7.5), exact for 1 and 2 degrees of freedom."""
    if freedom <= 2:
        return 12.7062 if freedom == 1 else 4.3027
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def share_interval(count: int, total: int) -> Interval:
    """Return Wilson's score interval (Wilson 1927) of a share."""
    if not total:
        return 0.0, 1.0
    share, z2 = count / total, _Z**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference_interval(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """Return the interval of `second - first` from those of both (Zou and Donner 2008, MOVER, eq. 5)."""
    difference = second - first
    low = difference - math.hypot(second - of_second[0], of_first[1] - first)
    high = difference + math.hypot(of_second[1] - second, first - of_first[0])
    return low, high
