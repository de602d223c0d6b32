"""Histograms and intervals against numpy, scipy, the HDR library and simulation."""

import math

import numpy as np
import pytest
import scipy.stats
from hdrh.histogram import HdrHistogram

from loadtest import histogram
from loadtest.intervals import difference_interval, mean_interval, percentile_intervals_ms, share_interval

SHARES = (0.5, 0.9, 0.99, 0.999)


def counts_of(seconds: np.ndarray) -> np.ndarray:
    found = histogram.new_histogram()
    for one in seconds:
        histogram.record(found, one)
    return histogram.counts_of(found.encode())


def quickly_counted(seconds: np.ndarray) -> np.ndarray:
    """The same without the library's loop, for many."""
    values = histogram.bucket_values_us()
    return np.bincount(np.searchsorted(values, np.floor(seconds * 1e6)), minlength=len(values))


def test_percentiles_are_those_of_numpy_and_of_the_library() -> None:
    seconds = np.random.default_rng(0).lognormal(-4, 1.5, 5000)
    counts = counts_of(seconds)
    assert (counts == quickly_counted(seconds)).all()
    library = HdrHistogram.decode(histogram.encoded(counts))
    assert library.get_total_count() == 5000
    for share in (*SHARES, 1.0):
        found = histogram.percentile_ms(counts, share)
        assert found == pytest.approx(1000 * np.quantile(seconds, share, method="inverted_cdf"), rel=0.001)
        assert found * 1000 == library.get_value_at_percentile(100 * share)
    assert histogram.mean_ms(counts) == pytest.approx(1000 * seconds.mean(), rel=0.002)
    assert math.isnan(histogram.percentile_ms(counts_of(np.array([])), 0.5))


def test_what_is_longer_than_an_hour_counts_as_an_hour() -> None:
    assert histogram.percentile_ms(counts_of(np.array([9e5])), 1) == pytest.approx(3_600_000, rel=0.001)


@pytest.mark.parametrize("damaged", [b"", b"HISTFAAA", "no base64", HdrHistogram(1, 1000, 2).encode()])
def test_what_is_no_histogram_of_ours(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="found"):
        histogram.counts_of(damaged)


def test_the_interval_holds_the_percentile_as_often_as_it_says() -> None:
    """Independent latencies, 20 seconds of 100 each: 95 % with the simulation's own error."""
    draw = np.random.default_rng(1)
    shares = (0.5, 0.9, 0.99)
    true_ms = 1000 * scipy.stats.expon.ppf(shares, scale=0.05)
    held = np.zeros(3)
    rounds = 80
    for _ in range(rounds):
        blocks = np.stack([quickly_counted(draw.exponential(0.05, 100)) for _ in range(20)])
        low, high = np.array(percentile_intervals_ms(blocks, shares)).T
        held += (low <= true_ms) & (true_ms <= high)
    assert held.min() >= scipy.stats.binom.ppf(0.001, rounds, 0.95)


def test_latencies_that_resemble_their_neighbors_have_a_wider_interval() -> None:
    """Each second has a level of its own: 20 seconds are 20 observations, not 2,000."""
    draw = np.random.default_rng(2)
    levels = draw.lognormal(-3, 0.5, 20)
    together = np.stack([counts_of(level * draw.uniform(0.9, 1.1, 100)) for level in levels])
    mixed = counts_of(np.concatenate([level * draw.uniform(0.9, 1.1, 100) for level in levels]))
    ((low, high),) = percentile_intervals_ms(together, [0.5])
    ((alone_low, alone_high),) = percentile_intervals_ms(mixed[None], [0.5])
    assert high - low > 2 * (alone_high - alone_low)


def test_a_sample_that_is_too_small_has_no_upper_bound() -> None:
    ((low, high),) = percentile_intervals_ms(counts_of(np.linspace(0.01, 0.02, 100))[None], [0.99])
    assert low == pytest.approx(19.7, rel=0.02)
    assert high == math.inf
    assert np.isnan(percentile_intervals_ms(counts_of(np.array([]))[None], [0.5, 0.9])).all()


def test_intervals_of_means_and_shares_are_scipys() -> None:
    values = np.random.default_rng(3).normal(100, 5, 12)
    for count in (2, 3, 5, 12):
        part = values[:count]
        expected = scipy.stats.t.interval(0.95, count - 1, part.mean(), scipy.stats.sem(part))
        assert mean_interval(part) == pytest.approx(expected, rel=1e-3)
    for failed, total in ((0, 50), (3, 1000), (50, 50)):
        expected = scipy.stats.binomtest(failed, total).proportion_ci(method="wilson")
        assert share_interval(failed, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_difference_of_two_normal_means_has_the_usual_interval() -> None:
    """For symmetric intervals the formula is that of independent errors."""
    low, high = difference_interval(10, (7, 13), 20, (16, 24))
    assert (low, high) == pytest.approx((10 - 5, 10 + 5))
    assert difference_interval(10, (9, 11), 20, (-math.inf, math.inf)) == (-math.inf, math.inf)
