"""Quality of predictions: pure functions of label ids."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import ClassMetrics, Interval

IdArray = NDArray[np.int64]


def accuracy(expected: IdArray, predicted: IdArray) -> float:
    """Return the share of equal ids; both are (N,) int64."""
    return float((expected == predicted).mean())


def per_class(expected: IdArray, predicted: IdArray, labels: Sequence[str]) -> dict[str, ClassMetrics]:
    """Return precision, recall and F1 of each label; 0 where a denominator is 0."""
    hits, predictions, support = _counts(expected, predicted, len(labels))
    precision = _ratio(hits, predictions)
    recall = _ratio(hits, support)
    f1 = _ratio(2 * hits, predictions + support)
    return {
        label: ClassMetrics(
            precision=float(precision[i]), recall=float(recall[i]), f1=float(f1[i]), support=int(support[i])
        )
        for i, label in enumerate(labels)
    }


def macro_f1(expected: IdArray, predicted: IdArray, classes: int) -> float:
    """Return the mean of the F1 of all classes."""
    hits, predictions, support = _counts(expected, predicted, classes)
    return float(_ratio(2 * hits, predictions + support).mean())


def bootstrap_interval(
    metric: Callable[[IdArray, IdArray], float], expected: IdArray, predicted: IdArray, samples: int, seed: int
) -> Interval:
    """Return a metric with its 95 % percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3)."""
    random = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        rows = random.integers(0, len(expected), size=len(expected))
        values.append(metric(expected[rows], predicted[rows]))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(value=metric(expected, predicted), low=float(low), high=float(high))


def _counts(expected: IdArray, predicted: IdArray, classes: int) -> tuple[Any, Any, Any]:
    hits = np.bincount(expected[expected == predicted], minlength=classes)
    return hits, np.bincount(predicted, minlength=classes), np.bincount(expected, minlength=classes)


def _ratio(numerator: Any, denominator: Any) -> Any:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
