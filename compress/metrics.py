"""Quality of predictions, from what each text adds to it.

Every metric is a ratio of sums over texts, so the sums over any resample of the texts give its value there: all metrics
and all models see the same resamples, which pairs them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import ClassMetrics, Interval
from compress.counts import Counts

FloatArray = NDArray[np.float64]

_DRAWS_AT_ONCE = 2**21  # bounds the memory of resampling to some tens of MB


@dataclass(frozen=True)
class Totals:
    """Sums of Counts over texts, float64 of whole numbers; S resamples, or one sum without the first axis."""

    hits: FloatArray
    """(S, K)"""
    predicted: FloatArray
    """(S, K)"""
    support: FloatArray
    """(S, K)"""
    correct: FloatArray
    """(S,)"""
    decisions: FloatArray
    """(S,)"""


@dataclass(frozen=True)
class Metric:
    """A named quality: calling it with Counts gives its value, `of` gives that of each of S resamples."""

    name: str
    of: Callable[[Totals], FloatArray]
    """Totals -> (S,)"""

    def __call__(self, counts: Counts) -> float:
        """Return the value over all texts."""
        return float(self.of(_sum(counts)))


def per_class(counts: Counts) -> dict[str, ClassMetrics]:
    """Return precision, recall and F1 of each label or entity type; 0 where a denominator is 0."""
    totals = _sum(counts)
    precision = _ratio(totals.hits, totals.predicted)
    recall = _ratio(totals.hits, totals.support)
    f1 = _class_f1(totals)
    return {
        name: ClassMetrics(
            precision=float(precision[i]), recall=float(recall[i]), f1=float(f1[i]), support=int(totals.support[i])
        )
        for i, name in enumerate(counts.names)
    }


def interval(metric: Metric, counts: Counts, samples: int, seed: int) -> Interval:
    """Return a metric with its 95 % percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3).

    The texts are resampled `samples` times; the same seed and number of texts give the same resamples, whatever the
    metric or model. Raises ValueError when there are no texts.
    """
    return _interval(metric(counts), metric.of(_resample([counts], samples, seed)[0]))


def paired_drop(metric: Metric, reference: Counts, own: Counts, samples: int, seed: int) -> Interval:
    """Return how far `own` is below `reference`, both resampled alike; negative where it is above.

    Raises ValueError when they do not count the same texts.
    """
    _same_texts(reference, own)
    first, second = _resample([reference, own], samples, seed)
    return _interval(metric(reference) - metric(own), metric.of(first) - metric.of(second))


def paired_retention(metric: Metric, reference: Counts, own: Counts, samples: int, seed: int) -> Interval | None:
    """Return the share of the reference's metric that `own` keeps, both resampled alike.

    None where the reference has nothing to keep; resamples in which it has nothing are left out. Raises ValueError
    when they do not count the same texts.
    """
    _same_texts(reference, own)
    if metric(reference) == 0:
        return None
    first, second = (metric.of(totals) for totals in _resample([reference, own], samples, seed))
    return _interval(metric(own) / metric(reference), second[first > 0] / first[first > 0])


def recall_drops(reference: Counts, own: Counts, samples: int, seed: int) -> dict[str, Interval]:
    """Return how far each label's (entity type's) recall is below the reference's, both resampled alike.

    Names without a text are left out, and so are resamples without one of the name's texts: recall is undefined there.
    Raises ValueError when they do not count the same texts.
    """
    _same_texts(reference, own)
    first, second = _resample([reference, own], samples, seed)
    reference_all, own_all = _sum(reference), _sum(own)
    drops = {}
    for i, name in enumerate(reference.names):
        if reference_all.support[i] == 0:
            continue
        j = own.names.index(name)
        drawn = first.support[:, i] > 0
        resampled = (first.hits[drawn, i] - second.hits[drawn, j]) / first.support[drawn, i]
        drops[name] = _interval(float((reference_all.hits[i] - own_all.hits[j]) / reference_all.support[i]), resampled)
    return drops


def _accuracy(totals: Totals) -> FloatArray:
    return _ratio(totals.correct, totals.decisions)


def _micro_f1(totals: Totals) -> FloatArray:
    return _ratio(2 * totals.hits.sum(axis=-1), (totals.predicted + totals.support).sum(axis=-1))


def _macro_f1(totals: Totals) -> FloatArray:
    return _ratio(_class_f1(totals).sum(axis=-1), _occurs(totals).sum(axis=-1))


def _occurs(totals: Totals) -> FloatArray:
    return (totals.predicted + totals.support > 0).astype(np.float64)


def _class_f1(totals: Totals) -> FloatArray:
    return _ratio(2 * totals.hits, totals.predicted + totals.support)


accuracy = Metric("accuracy", _accuracy)
"""Share of right decisions; of texts whose label set is exactly right (multi-label), of words (tags)."""

micro_f1 = Metric("micro-F1", _micro_f1)
"""F1 of all labels' (entities') hits taken together; 0 where nothing was expected or predicted."""

entity_f1 = Metric("entity F1", _micro_f1)
"""The micro-F1 of entities, as conlleval and seqeval count them."""

macro_f1 = Metric("macro-F1", _macro_f1)
"""Mean F1 of the labels (entity types) that were expected or predicted at least once, as in scikit-learn and seqeval.
One that was neither has no F1; slices and resamples that lack a label are not punished for it."""

disagreement = Metric("disagreement", lambda totals: np.asarray(1 - _accuracy(totals)))
"""Share of decisions that differ: of one model's from those of another that is given as the expected ones."""


def _interval(value: float, resampled: FloatArray) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def _resample(models: Sequence[Counts], samples: int, seed: int) -> list[Totals]:
    """Return each model's sums over the same `samples` resamples of the texts."""
    texts = len(models[0])
    if texts == 0:
        raise ValueError("there are no texts; expected at least one to resample")
    matrices = [_matrix(counts) for counts in models]
    parts: list[list[FloatArray]] = [[] for _ in models]
    for weights in _weights(texts, samples, seed):
        for part, matrix in zip(parts, matrices, strict=True):
            part.append(weights @ matrix)
    return [_split(np.concatenate(part)) for part in parts]


def _weights(texts: int, samples: int, seed: int) -> Iterator[FloatArray]:
    """Yield how often each text is drawn, (samples in this chunk, N); rows sum to N."""
    random = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // texts)
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        drawn = random.integers(0, texts, size=(rows, texts)) + texts * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * texts).reshape(rows, texts).astype(np.float64)


def _matrix(counts: Counts) -> FloatArray:
    """Return (N, 3 K + 2): the columns that `_split` takes apart."""
    columns = (counts.hits, counts.predicted, counts.support, counts.correct[:, None], counts.decisions[:, None])
    return np.concatenate(columns, axis=1).astype(np.float64)


def _split(sums: FloatArray) -> Totals:
    hits, predicted, support = np.split(sums[..., :-2], 3, axis=-1)
    return Totals(hits, predicted, support, sums[..., -2], sums[..., -1])


def _sum(counts: Counts) -> Totals:
    return _split(_matrix(counts).sum(axis=0))


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    result: FloatArray = np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=denominator > 0)
    return result


def _same_texts(reference: Counts, own: Counts) -> None:
    expected = [
        {name: counts.support[:, i].tobytes() for i, name in enumerate(counts.names) if counts.support[:, i].any()}
        for counts in (reference, own)
    ]
    if not np.array_equal(reference.decisions, own.decisions) or expected[0] != expected[1]:
        raise ValueError("the two counts are not of the same texts with the same expected labels in the same order")
