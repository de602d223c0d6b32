"""HDR histograms of microseconds (hdrhistogram), and their counts as arrays."""

import functools
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

_LOWEST_US = 1
_HIGHEST_US = 3_600_000_000
_DIGITS = 3

Counts = NDArray[np.int64]
"""(buckets,): how many values fell into each bucket of a histogram."""


def new_histogram() -> Any:
    """Return an empty histogram of 1 µs to an hour, to three significant digits."""
    return HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)


def record(histogram: Any, seconds: float) -> None:
    """Record a duration; what is longer than an hour counts as an hour."""
    histogram.record_value(min(max(int(seconds * 1e6), 0), _HIGHEST_US))


def counts_of(encoded: bytes | str) -> Counts:
    """Return the counts of an encoded histogram (HDR, V2, base64), which must be one of `new_histogram`'s shape.

    Raises ValueError.
    """
    try:
        histogram = HdrHistogram.decode(encoded)
    except Exception as error:  # the library documents five kinds, zlib's and binascii's among them
        raise ValueError(f"found no HDR histogram ({error})") from error
    if histogram.counts_len != bucket_count():
        raise ValueError("found an HDR histogram of another range")
    return np.ctypeslib.as_array(histogram.counts).astype(np.int64)


def encoded(counts: Counts) -> str:
    """Return the histogram in the format that HDR tools share (V2, base64)."""
    histogram = new_histogram()
    values = bucket_values_us()
    for index in np.flatnonzero(counts):
        histogram.record_value(int(values[index]), int(counts[index]))
    return bytes(histogram.encode()).decode()


@functools.cache
def bucket_count() -> int:
    """Return how many buckets a histogram has."""
    return int(new_histogram().counts_len)


@functools.cache
def bucket_values_us() -> NDArray[np.int64]:
    """Return (buckets,): the highest value of each bucket, in microseconds."""
    histogram = new_histogram()
    value_of, highest_of = histogram.get_value_from_index, histogram.get_highest_equivalent_value
    return np.array([highest_of(value_of(index)) for index in range(bucket_count())], dtype=np.int64)


def percentile_ms(counts: Counts, share: float) -> float:
    """Return the least value, in milliseconds, that at least this share of the values does not exceed; nan if empty."""
    total = int(counts.sum())
    if not total:
        return float("nan")
    rank = max(1, int(np.ceil(round(share * total, 6))))
    return float(bucket_values_us()[np.searchsorted(np.cumsum(counts), rank)]) / 1000


def mean_ms(counts: Counts) -> float:
    """Return the mean in milliseconds; nan if empty."""
    total = int(counts.sum())
    return float(counts @ bucket_values_us()) / total / 1000 if total else float("nan")
