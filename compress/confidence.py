"""What is fitted on the validation split: temperature, thresholds, abstention; and how well scores are calibrated.

A row is one decision: a text, or a word (token classification). Targets are (R,) int64 label ids, or (R, C) zeros and
ones (multi-label); rows whose target is UNLABELED are left out.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.rows import UNLABELED

FloatArray = NDArray[np.float64]

MIN_KEPT_ROWS = 30
"""Fewest rows from which a precision is stated; below, even an error rate of 10 % shows no error one time in 24."""

_COLDEST, _HOTTEST = 0.01, 100.0
_HALVINGS = 24  # of the 9.2 between the logarithms of the two: leaves less than 1e-6


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence is above `low` and at most `high`; confidence 0 is in the first."""

    low: float
    high: float
    count: int
    mean_confidence: float | None
    """None in an empty bin, as is `accuracy`."""
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """How far confidence is from how often the model is right."""

    expected_error: float
    """ECE; 0 is perfect."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Abstention:
    """From which confidence on answers are given, and how that went where it was fitted."""

    threshold: float
    """Answer where confidence is at least this."""
    precision: float
    """Share of the answers that are right."""
    coverage: float
    """Share of the rows that get an answer."""


@dataclass(frozen=True)
class Fitted:
    """What one model's scores need."""

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    """Multi-label: one a label."""
    abstention: Abstention | None = None

    @property
    def threshold_array(self) -> NDArray[np.float64] | None:
        """The thresholds as (C,) float64."""
        return None if self.thresholds is None else np.array(self.thresholds)


def fit_temperature(logits: NDArray[np.float32], targets: NDArray[np.int64], multi_label: bool) -> float:
    """Return the T that makes softmax(logits / T), or sigmoid when `multi_label`, most likely (Guo et al. 2017, 4.2).

    The negative log-likelihood is convex in 1 / T, so its derivative is bisected between T = 0.01 and 100. Where the
    optimum lies beyond (all rows right, or worse than chance) the data say nothing about T and it is 1. `logits` are
    (R, C). Raises ValueError on logits that are not finite and where no row is labeled.
    """
    kept, known = _labeled(logits, targets)
    values = kept.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("logits that are not finite; expected the output of a sound model")
    aim = known.astype(np.float64) if multi_label else np.eye(values.shape[1])[known]

    def slope(temperature: float) -> float:
        """Return a positive multiple of the derivative by 1 / T: positive where a greater T is more likely."""
        scaled = values / temperature
        return float(((_sigmoid(scaled) if multi_label else _softmax(scaled)) - aim).ravel() @ values.ravel())

    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    if slope(_COLDEST) <= 0 or slope(_HOTTEST) >= 0:
        return 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def reliability(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.int64], multi_label: bool, bins: int = 15
) -> Reliability:
    """Return the expected calibration error (Guo et al. 2017, equation 3) and its bins of equal width.

    The confidence is the highest score of a row (R, C) and right when that is its label; in multi-label every score is
    one, and right when the row has the label. Raises ValueError where no row is labeled.
    """
    kept, known = _labeled(scores, targets)
    if multi_label:
        confidence, right = kept.ravel().astype(np.float64), known.ravel() == 1
    else:
        confidence, right = kept.max(axis=1).astype(np.float64), kept.argmax(axis=1) == known
    edges = np.linspace(0, 1, bins + 1)
    chosen = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(chosen, minlength=bins)
    sums = np.bincount(chosen, weights=confidence, minlength=bins)
    hits = np.bincount(chosen, weights=right, minlength=bins)
    return Reliability(
        expected_error=float(np.abs(hits - sums).sum() / len(confidence)),
        bins=tuple(
            Bin(
                low=float(edges[i]),
                high=float(edges[i + 1]),
                count=int(counts[i]),
                mean_confidence=float(sums[i] / counts[i]) if counts[i] else None,
                accuracy=float(hits[i] / counts[i]) if counts[i] else None,
            )
            for i in range(bins)
        ),
    )


def tune_thresholds(scores: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> FloatArray:
    """Return for each label the threshold (C,) with the best F1 on these rows (Lipton et al. 2014).

    A label is assigned where its score is at least its threshold. Candidates are the middles between neighboring
    scores, and between the lowest and 0; of equally good ones the nearest to 0.5 is taken. A label that no row has
    gets 0.5. Both are (R, C). Raises ValueError where no row is labeled.
    """
    kept, known = _labeled(scores, targets)
    order = np.argsort(-kept, axis=0, kind="stable")
    ranked = np.take_along_axis(kept, order, axis=0).astype(np.float64)
    hits = np.cumsum(np.take_along_axis(known == 1, order, axis=0), axis=0)
    assigned = np.arange(1, len(kept) + 1)[:, None]
    f1 = 2 * hits / (assigned + hits[-1])
    below = np.concatenate([ranked[1:], np.zeros((1, ranked.shape[1]))])
    f1[:-1][ranked[:-1] == below[:-1]] = -1  # equal scores can't be told apart
    middles = (ranked + below) / 2
    distance = np.where(f1 == f1.max(axis=0), np.abs(middles - 0.5), np.inf)
    chosen = np.take_along_axis(middles, distance.argmin(axis=0)[None], axis=0)[0]
    return np.where(hits[-1] > 0, chosen, 0.5)


def abstention(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], wanted_precision: float
) -> Abstention | None:
    """Return the lowest threshold from which at least `wanted_precision` of the answers (R,) are right.

    The precision is that of the rows it was fitted on; measure it again on others before it is promised. None where
    no threshold that keeps at least MIN_KEPT_ROWS rows reaches it.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order].astype(np.float64)
    below = np.append(ranked[1:], 0.0)
    kept = np.arange(1, len(ranked) + 1)
    precision = np.cumsum(correct[order]) / kept
    # a row can't be left out while another with the same confidence is kept
    possible = (precision >= wanted_precision) & (kept >= MIN_KEPT_ROWS) & ((ranked > below) | (kept == len(ranked)))
    if not possible.any():
        return None
    last = int(np.flatnonzero(possible)[-1])
    threshold = 0.0 if last == len(ranked) - 1 else (ranked[last] + below[last]) / 2
    return Abstention(float(threshold), float(precision[last]), float(kept[last] / len(ranked)))


def _labeled(values: NDArray[Any], targets: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    if len(values) != len(targets):
        raise ValueError(f"found {len(values)} rows of outputs and {len(targets)} targets; expected as many")
    rows = targets != UNLABELED if targets.ndim == 1 else (targets != UNLABELED).all(axis=1)
    if not rows.any():
        raise ValueError("no row is labeled; expected at least one")
    return values[rows], targets[rows]


def _softmax(values: FloatArray) -> FloatArray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoid(values: FloatArray) -> FloatArray:
    return np.asarray((1 + np.tanh(values / 2)) / 2)
