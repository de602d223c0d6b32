"""Calibration against scipy, hand-worked examples and exhaustive search."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import f1_score

from compress.confidence import MIN_KEPT_ROWS, abstention, fit_temperature, reliability, tune_thresholds
from compress.rows import UNLABELED


def nll(temperature: float, logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return float(np.logaddexp(0, np.where(targets == 1, -scaled, scaled)).mean())
    return float(-log_softmax(scaled, axis=1)[np.arange(len(targets)), targets].mean())


def draw(rows: int, labels: int, multi_label: bool, overconfident: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw targets from the probabilities of logits, and return the logits `overconfident` times too large."""
    random = np.random.default_rng(5)
    logits = random.normal(scale=2, size=(rows, labels))
    if multi_label:
        targets = (random.random((rows, labels)) < expit(logits)).astype(np.int64)
    else:
        targets = np.array([random.choice(labels, p=row) for row in softmax(logits, axis=1)])
    return (logits * overconfident).astype(np.float32), targets


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("overconfident", [0.2, 1.0, 5.0])
def test_the_temperature_is_the_likeliest(multi_label: bool, overconfident: float) -> None:
    logits, targets = draw(3000, 4, multi_label, overconfident)
    found = fit_temperature(logits, targets, multi_label)
    theirs = minimize_scalar(
        lambda x: nll(math.exp(x), logits, targets, multi_label),
        bounds=(math.log(0.01), math.log(100)),
        method="bounded",
    )
    assert found == pytest.approx(math.exp(theirs.x), rel=1e-3)
    assert found == pytest.approx(overconfident, rel=0.1)

    def error(temperature: float) -> float:
        scaled = logits / temperature
        scores = expit(scaled) if multi_label else softmax(scaled, axis=1)
        return reliability(scores, targets, multi_label).expected_error

    assert error(found) < 0.03
    assert error(found) <= error(1.0) + 0.005


@pytest.mark.parametrize("multi_label", [False, True])
def test_unlabeled_rows_change_nothing(multi_label: bool) -> None:
    logits, targets = draw(50, 3, multi_label, 2.0)
    more_logits = np.concatenate([logits, 100 * logits])
    more_targets = np.concatenate([targets, np.full_like(targets, UNLABELED)])
    assert fit_temperature(more_logits, more_targets, multi_label) == fit_temperature(logits, targets, multi_label)
    scores = expit(logits)
    more_scores = np.concatenate([scores, scores])
    assert reliability(more_scores, more_targets, multi_label) == reliability(scores, targets, multi_label)
    if multi_label:
        assert np.array_equal(tune_thresholds(more_scores, more_targets), tune_thresholds(scores, targets))


def test_where_no_temperature_is_best_it_is_one() -> None:
    right = np.array([[3.0, -1], [-2, 1]], dtype=np.float32)
    for multi_label, all_right in ((False, np.array([0, 1])), (True, np.array([[1, 0], [0, 1]]))):
        assert fit_temperature(right, all_right, multi_label) == 1
        assert fit_temperature(right, 1 - all_right, multi_label) == 1
        assert fit_temperature(right[:1], all_right[:1], multi_label) == 1
        assert fit_temperature(right * 0, all_right, multi_label) == 1


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[3e4, -3e4], [3e4, -3e4], [3e4, -3e4]], dtype=np.float32)
    assert 0.01 <= fit_temperature(logits, np.array([0, 0, 1]), False) <= 100


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(np.array([[np.nan, 1]], dtype=np.float32), np.array([0]), False)
    with pytest.raises(ValueError, match="no row is labeled"):
        fit_temperature(np.zeros((2, 2), np.float32), np.array([UNLABELED, UNLABELED]), False)
    with pytest.raises(ValueError, match="found 2 rows of outputs and 1 targets"):
        reliability(np.zeros((2, 2)), np.array([0]), False)


def test_reliability_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55], [0.5, 0.5]])
    found = reliability(scores, np.array([0, 1, 1, 0, 0]), multi_label=False, bins=4)
    # (0.25, 0.5]: 0.5 right. (0.5, 0.75]: 0.7 right, 0.55 wrong. (0.75, 1]: 0.9 right, 0.8 wrong.
    assert [b.count for b in found.bins] == [0, 1, 2, 2]
    assert found.bins[0].mean_confidence is found.bins[0].accuracy is None
    assert [b.mean_confidence for b in found.bins[1:]] == pytest.approx([0.5, 0.625, 0.85])
    assert [b.accuracy for b in found.bins[1:]] == pytest.approx([1, 0.5, 0.5])
    assert found.expected_error == pytest.approx((1 * 0.5 + 2 * 0.125 + 2 * 0.35) / 5)
    assert (found.bins[1].low, found.bins[1].high) == (0.25, 0.5)


def test_reliability_of_every_label_by_hand() -> None:
    found = reliability(np.array([[0.0, 0.9], [1.0, 0.2]]), np.array([[0, 1], [1, 1]]), multi_label=True, bins=2)
    assert [b.count for b in found.bins] == [2, 2]
    assert found.expected_error == pytest.approx((2 * abs(0.1 - 0.5) + 2 * abs(0.95 - 1)) / 4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=25))
def test_thresholds_are_the_best_and_the_nearest_to_a_half(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([[score / 8] for score, _ in rows], dtype=np.float32)
    targets = np.array([[int(label)] for _, label in rows])
    found = float(tune_thresholds(scores, targets)[0])
    if not targets.any():
        assert found == 0.5
        return

    def f1(threshold: float) -> float:
        return float(f1_score(targets[:, 0], scores[:, 0] >= threshold, zero_division=0))

    distinct = sorted({0.0, *scores[:, 0].tolist()})
    candidates = [(a + b) / 2 for a, b in itertools.pairwise(distinct)] or [0.0]
    best = max(f1(threshold) for threshold in [*candidates, 0.0])
    assert f1(found) == pytest.approx(best)
    nearest = min((abs(c - 0.5) for c in candidates if f1(c) == pytest.approx(best)), default=0.5)
    assert abs(found - 0.5) == pytest.approx(nearest)


def test_thresholds_of_many_labels_are_those_of_each() -> None:
    random = np.random.default_rng(7)
    scores, targets = random.random((60, 5)).astype(np.float32), random.integers(0, 2, (60, 5))
    targets[:, 2] = 0
    found = tune_thresholds(scores, targets)
    assert found.shape == (5,)
    assert found[2] == 0.5
    for column in range(5):
        assert found[column] == tune_thresholds(scores[:, [column]], targets[:, [column]])[0]


def test_thresholds_by_hand() -> None:
    scores = np.array([[0.9], [0.3], [0.2], [0.1]])
    assert tune_thresholds(scores, np.array([[1], [1], [0], [0]]))[0] == pytest.approx(0.25)
    assert tune_thresholds(scores, np.array([[1], [0], [0], [0]]))[0] == pytest.approx(0.6)
    assert tune_thresholds(scores, np.array([[1], [1], [1], [1]]))[0] == pytest.approx(0.05)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=90), st.sampled_from([0.5, 0.8, 1.0])
)
def test_abstention_answers_as_often_as_it_may(rows: list[tuple[int, bool]], wanted: float) -> None:
    confidence = np.array([score / 20 for score, _ in rows])
    correct = np.array([right for _, right in rows])
    possible = []
    for threshold in {0.0, *confidence}:
        kept = confidence >= threshold
        if kept.sum() >= MIN_KEPT_ROWS and correct[kept].mean() >= wanted:
            possible.append(kept.mean())
    found = abstention(confidence, correct, wanted)
    if not possible:
        assert found is None
        return
    assert found is not None
    kept = confidence >= found.threshold
    assert found.coverage == pytest.approx(kept.mean()) == pytest.approx(max(possible))
    assert found.precision == pytest.approx(correct[kept].mean())
    assert found.precision >= wanted


def test_abstention_by_hand() -> None:
    confidence = np.linspace(0.99, 0.5, 50)
    correct = np.arange(50) < 40
    found = abstention(confidence, correct, 1.0)
    assert found is not None
    assert (found.precision, found.coverage) == (1.0, 0.8)
    assert found.threshold == pytest.approx(confidence[39] - 0.005)
    everything = abstention(confidence, correct, 0.8)
    assert everything is not None
    assert (everything.threshold, everything.coverage) == (0.0, 1.0)
    assert abstention(confidence[:29], correct[:29], 0.5) is None
