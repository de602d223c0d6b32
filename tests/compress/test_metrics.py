"""Metrics against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as reference

from compress.metrics import accuracy, bootstrap_interval, macro_f1, per_class

LABELS = ["a", "b", "c", "never predicted"]
RNG = np.random.default_rng(1)
EXPECTED = RNG.integers(0, 4, size=200)
PREDICTED = np.where(RNG.random(200) < 0.7, EXPECTED, RNG.integers(0, 3, size=200))


def test_accuracy_and_f1() -> None:
    assert accuracy(EXPECTED, PREDICTED) == pytest.approx(reference.accuracy_score(EXPECTED, PREDICTED))
    assert macro_f1(EXPECTED, PREDICTED, 4) == pytest.approx(reference.f1_score(EXPECTED, PREDICTED, average="macro"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("predicted", [PREDICTED, np.minimum(PREDICTED, 2)])
def test_per_class(predicted: np.ndarray) -> None:
    found = per_class(EXPECTED, predicted, LABELS)
    expected = reference.precision_recall_fscore_support(EXPECTED, predicted, labels=range(4), zero_division=0)
    for index, label in enumerate(LABELS):
        row = found[label]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx([column[index] for column in expected])


def test_the_bootstrap_interval_is_that_of_a_binomial_share() -> None:
    interval = bootstrap_interval(accuracy, EXPECTED, PREDICTED, samples=4000, seed=0)
    half = 1.96 * (interval.value * (1 - interval.value) / len(EXPECTED)) ** 0.5
    assert interval.value == accuracy(EXPECTED, PREDICTED)
    assert interval.low == pytest.approx(interval.value - half, abs=0.01)
    assert interval.high == pytest.approx(interval.value + half, abs=0.01)
    assert interval == bootstrap_interval(accuracy, EXPECTED, PREDICTED, samples=4000, seed=0)
