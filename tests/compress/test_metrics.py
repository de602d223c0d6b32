"""Metrics against scikit-learn and seqeval, intervals against theory and a plain loop."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from seqeval.metrics import sequence_labeling as seqeval
from sklearn import metrics as reference

from bundle.manifest import Interval
from compress.counts import Counts, count_multi, count_single, count_tags, subset
from compress.metrics import (
    Metric,
    accuracy,
    disagreement,
    interval,
    macro_f1,
    micro_f1,
    paired_drop,
    paired_retention,
    per_class,
    recall_drops,
)

LABELS = ["a", "b", "c", "rare"]
RNG = np.random.default_rng(1)
EXPECTED = RNG.integers(0, 4, size=200)
PREDICTED = np.where(RNG.random(200) < 0.7, EXPECTED, RNG.integers(0, 3, size=200))
WORSE = np.where(RNG.random(200) < 0.8, PREDICTED, RNG.integers(0, 4, size=200))
COUNTS, WORSE_COUNTS = count_single(EXPECTED, PREDICTED, LABELS), count_single(EXPECTED, WORSE, LABELS)

TAGS = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a-b", "I-a-b"]
TAGGED = st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1), min_size=1)
IDS = st.integers(1, 40).flatmap(lambda n: st.tuples(*(arrays(np.int64, n, elements=st.integers(0, 3)),) * 2))
SETS = st.integers(1, 30).flatmap(lambda n: st.tuples(*(arrays(np.bool_, (n, 4)),) * 2))

quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")


def assert_per_class(counts: Counts, expected: tuple) -> None:
    for index, (_, row) in enumerate(per_class(counts).items()):
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx([column[index] for column in expected])


@quiet
@settings(deadline=None)
@given(IDS)
def test_one_label_a_text(both: tuple[np.ndarray, np.ndarray]) -> None:
    expected, predicted = both
    counts = count_single(expected, predicted, LABELS)
    assert accuracy(counts) == pytest.approx(reference.accuracy_score(expected, predicted))
    for metric, average in ((micro_f1, "micro"), (macro_f1, "macro")):
        assert metric(counts) == pytest.approx(reference.f1_score(expected, predicted, average=average))
    assert_per_class(
        counts, reference.precision_recall_fscore_support(expected, predicted, labels=range(4), zero_division=0)
    )


@quiet
@settings(deadline=None)
@given(SETS)
def test_any_number_of_labels_a_text(both: tuple[np.ndarray, np.ndarray]) -> None:
    expected, predicted = both
    counts = count_multi(expected, predicted, LABELS)
    assert accuracy(counts) == pytest.approx(reference.accuracy_score(expected, predicted))
    assert micro_f1(counts) == pytest.approx(reference.f1_score(expected, predicted, average="micro", zero_division=0))
    # a label that is neither expected nor predicted has no F1: scikit-learn leaves it out of the mean on request
    macro = reference.f1_score(expected, predicted, average="macro", zero_division=np.nan)
    assert macro_f1(counts) == pytest.approx(0 if np.isnan(macro) else macro)
    assert_per_class(counts, reference.precision_recall_fscore_support(expected, predicted, zero_division=0))


@quiet
@settings(deadline=None)
@given(TAGGED)
def test_entities(texts: list[list[tuple[str, str]]]) -> None:
    expected, predicted = ([[word[side] for word in text] for text in texts] for side in (0, 1))
    counts = count_tags(expected, predicted)
    assert accuracy(counts) == pytest.approx(seqeval.accuracy_score(expected, predicted))
    assert micro_f1(counts) == pytest.approx(seqeval.f1_score(expected, predicted, zero_division=0))
    if counts.names:
        assert macro_f1(counts) == pytest.approx(
            seqeval.f1_score(expected, predicted, average="macro", zero_division=0)
        )
    assert_per_class(
        counts, seqeval.precision_recall_fscore_support(expected, predicted, average=None, zero_division=0)
    )


def test_conlleval_by_hand() -> None:
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "I-ORG", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O", "B-LOC"]]
    counts = count_tags(expected, predicted)
    assert counts.names == ("LOC", "ORG", "PER")
    assert counts.hits.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert counts.predicted.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert counts.support.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert counts.correct.tolist() == [4, 1]
    assert counts.decisions.tolist() == [4, 3]
    assert micro_f1(counts) == pytest.approx(2 * 2 / (4 + 3))
    assert macro_f1(counts) == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_a_text_without_words_or_entities_adds_nothing() -> None:
    counts = count_tags([[], ["O"]], [[], ["O"]])
    assert counts.names == ()
    assert (micro_f1(counts), macro_f1(counts), accuracy(counts)) == (0, 0, 1)
    assert interval(micro_f1, counts, 100, 0) == Interval(value=0, low=0, high=0)


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="text 1: expected 2 tags, a tag for each word; found 1"):
        count_tags([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="text 0: word 1 has the tag 'LOC'"):
        count_tags([["O", "LOC"]], [["O", "O"]])
    with pytest.raises(ValueError, match="found 1 expected and 2 predicted texts"):
        count_tags([["O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="text 1 has the label id -100; expected 0 to 3"):
        count_single(np.array([0, -100]), np.array([0, 1]), LABELS)
    with pytest.raises(ValueError, match=r"found shape \(2, 3\); expected \(texts, 4\)"):
        count_multi(np.zeros((2, 4), bool), np.zeros((2, 3), bool), LABELS)
    with pytest.raises(ValueError, match="no texts"):
        interval(accuracy, subset(COUNTS, np.zeros(200, bool)), 100, 0)


def test_a_subset_is_counted_as_if_it_were_alone() -> None:
    mask = RNG.random(200) < 0.3
    part, alone = subset(COUNTS, mask), count_single(EXPECTED[mask], PREDICTED[mask], LABELS)
    for name in ("names", "hits", "predicted", "support", "correct", "decisions"):
        assert np.array_equal(getattr(part, name), getattr(alone, name))
    assert len(part) == mask.sum()


def test_disagreement_is_the_share_of_different_decisions() -> None:
    assert disagreement(count_single(PREDICTED, WORSE, LABELS)) == pytest.approx((PREDICTED != WORSE).mean())


def test_the_interval_is_that_of_a_binomial_share() -> None:
    found = interval(accuracy, COUNTS, samples=4000, seed=0)
    half = 1.96 * (found.value * (1 - found.value) / len(EXPECTED)) ** 0.5
    assert found.value == accuracy(COUNTS)
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high == pytest.approx(found.value + half, abs=0.01)
    assert found == interval(accuracy, COUNTS, samples=4000, seed=0)


def test_the_paired_interval_is_that_of_paired_shares() -> None:
    difference = (EXPECTED == PREDICTED).astype(float) - (EXPECTED == WORSE)
    half = 1.96 * difference.std() / len(difference) ** 0.5
    found = paired_drop(accuracy, COUNTS, WORSE_COUNTS, samples=4000, seed=0)
    assert found.value == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.007)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.007)
    apart = interval(accuracy, COUNTS, 4000, 0)
    assert found.high - found.low < apart.high - apart.low, "pairing narrows the interval"


@quiet
@settings(deadline=None, max_examples=20)
@given(st.sampled_from([accuracy, micro_f1, macro_f1]), st.integers(0, 2**32 - 1))
def test_resampling_is_that_of_a_plain_loop(metric: Metric, seed: int) -> None:
    draws = np.random.default_rng(seed).integers(0, 200, size=(60, 200))

    def score(rows: np.ndarray, predicted: np.ndarray) -> float:
        if metric is accuracy:
            return reference.accuracy_score(EXPECTED[rows], predicted[rows])
        return reference.f1_score(EXPECTED[rows], predicted[rows], average=metric.name.removesuffix("-F1"))

    first, second = (np.array([score(rows, p) for rows in draws]) for p in (PREDICTED, WORSE))
    found = (
        interval(metric, COUNTS, 60, seed),
        paired_drop(metric, COUNTS, WORSE_COUNTS, 60, seed),
        paired_retention(metric, COUNTS, WORSE_COUNTS, 60, seed),
    )
    for ours, theirs in zip(found, (first, first - second, second / first), strict=True):
        assert ours is not None
        assert [ours.low, ours.high] == pytest.approx(np.percentile(theirs, [2.5, 97.5]).tolist())


def test_many_texts_are_resampled_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = interval(macro_f1, COUNTS, 100, 3)
    monkeypatch.setattr("compress.metrics._DRAWS_AT_ONCE", 200 * 7)
    assert interval(macro_f1, COUNTS, 100, 3) == whole


def test_a_model_compared_with_itself_keeps_everything() -> None:
    none, whole = Interval(value=0, low=0, high=0), Interval(value=1, low=1, high=1)
    assert paired_drop(macro_f1, COUNTS, COUNTS, 200, 0) == none
    assert paired_retention(macro_f1, COUNTS, COUNTS, 200, 0) == whole
    assert recall_drops(COUNTS, COUNTS, 200, 0) == dict.fromkeys(LABELS, none)


def test_nothing_can_be_kept_of_nothing() -> None:
    useless = count_single(EXPECTED, (EXPECTED + 1) % 4, LABELS)
    assert paired_retention(accuracy, useless, COUNTS, 100, 0) is None


def test_recall_drops() -> None:
    found = recall_drops(COUNTS, WORSE_COUNTS, 500, 0)
    for index, label in enumerate(LABELS):
        theirs = [reference.recall_score(EXPECTED, p, labels=[index], average=None)[0] for p in (PREDICTED, WORSE)]
        assert found[label].value == pytest.approx(theirs[0] - theirs[1])
        assert found[label].low <= found[label].value <= found[label].high


def test_recall_of_a_rare_label_is_that_of_resamples_that_hold_it() -> None:
    expected = np.array([0] * 99 + [1])
    found = recall_drops(
        count_single(expected, expected, ["a", "b", "absent"]),
        count_single(expected, expected * 0, ["a", "b", "absent"]),
        500,
        0,
    )
    assert found == {"a": Interval(value=0, low=0, high=0), "b": Interval(value=1, low=1, high=1)}


def test_models_with_entity_types_of_their_own_are_compared() -> None:
    expected = [["B-PER", "O"], ["B-LOC", "O"]] * 20
    reference_counts = count_tags(expected, expected)
    own = count_tags(expected, [["O", "B-A"], ["B-LOC", "O"]] * 20)
    assert own.names == ("A", "LOC", "PER")
    drops = recall_drops(reference_counts, own, 200, 0)
    assert {name: drop.value for name, drop in drops.items()} == {"LOC": 0, "PER": 1}
    assert paired_drop(micro_f1, reference_counts, own, 200, 0).value == pytest.approx(0.5)


def test_counts_of_other_texts_are_refused() -> None:
    for other in (count_single(EXPECTED[::-1], WORSE, LABELS), subset(COUNTS, np.arange(200) < 100)):
        for compare in (paired_drop, paired_retention):
            with pytest.raises(ValueError, match="not of the same texts"):
                compare(accuracy, COUNTS, other, 100, 0)
        with pytest.raises(ValueError, match="not of the same texts"):
            recall_drops(COUNTS, other, 100, 0)


def test_five_thousand_texts_take_no_time() -> None:
    expected = RNG.integers(0, 4, size=5000)
    counts = count_single(expected, expected, LABELS)
    started = time.perf_counter()
    paired_drop(macro_f1, counts, counts, 1000, 0)
    assert time.perf_counter() - started < 5, "a loop over samples and texts would take far longer"
