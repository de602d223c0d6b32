"""What is counted of two classifiers' answers, against scipy and against counting by hand."""

import random
from collections import Counter

import pytest
from scipy.stats import binomtest

from bulk.answers import NO_LABEL, Answer
from bulk.comparison import Comparison, score_difference


def answer(label: str, **scores: float) -> Answer:
    return Answer((label,), scores)


def compared(count: int, seed: int = 0, worst: int = 5) -> tuple[Comparison, list[tuple[Answer, Answer]]]:
    source = random.Random(seed)
    sides = []
    for _ in range(count):
        pair = []
        for _ in range(2):
            a, b = source.random(), source.random() / 2
            pair.append(answer("a" if a > b else "b", a=a, b=b))
        sides.append((pair[0], pair[1]))
    comparison = Comparison(worst)
    for number, (before, after) in enumerate(sides, start=1):
        comparison.add(number, f"text {number}", before, after)
    return comparison, sides


@pytest.mark.parametrize("count", [1, 7, 400])
def test_agreement_has_wilsons_interval(count: int) -> None:
    comparison, sides = compared(count)
    agreed = sum(before.predicted == after.predicted for before, after in sides)
    assert (comparison.texts, comparison.agreed) == (count, agreed)
    expected = binomtest(agreed, count).proportion_ci(method="wilson")
    assert comparison.interval() == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_flips_are_counted_by_both_labels() -> None:
    comparison, sides = compared(300)
    flips = Counter((b.predicted[0], a.predicted[0]) for b, a in sides if b.predicted != a.predicted)
    assert len(flips) == 2
    assert comparison.flips == flips
    by_label = comparison.by_label()
    for label, other in ("ab", "ba"):
        assert (by_label[label]["lost"], by_label[label]["gained"]) == (flips[label, other], flips[other, label])
        assert by_label[label]["candidate"] == sum(after.predicted == (label,) for _, after in sides)
    told = comparison.as_json()["flips"][0]
    given = sum(before.predicted == (told["reference"],) for before, _ in sides)
    assert told["share"] == pytest.approx(told["texts"] / given)


def test_the_worst_are_those_whose_scores_differ_most() -> None:
    comparison, sides = compared(300, worst=7)
    differences = {
        number: max(abs(before.scores[label] - after.scores[label]) for label in "ab")
        for number, (before, after) in enumerate(sides, start=1)
        if before.predicted != after.predicted
    }
    expected = sorted(differences, key=differences.__getitem__, reverse=True)[:7]
    assert [one["row"] for one in comparison.as_json()["worst"]] == expected
    assert [one["text"] for one in comparison.as_json()["worst"]] == [f"text {number}" for number in expected]
    assert compared(50, worst=0)[0].worst() == []


def test_differences_count_all_texts() -> None:
    comparison, sides = compared(50)
    found = [max(abs(b.scores[label] - a.scores[label]) for label in "ab") for b, a in sides]
    assert comparison.mean_difference == pytest.approx(sum(found) / 50)
    assert comparison.largest_difference == max(found)


def test_several_labels_are_compared_as_sets() -> None:
    comparison = Comparison(3)
    comparison.add(
        1, ("one", "two"), Answer(("a", "b"), {"a": 0.9, "b": 0.8}), Answer(("b", "a"), {"a": 0.8, "b": 0.9})
    )
    comparison.add(2, ("x", "y"), Answer(("a",), {"a": 0.9}), Answer((), {"a": 0.1}))
    assert comparison.agreed == 1
    assert comparison.flips == {("a", NO_LABEL): 1}
    assert comparison.as_json()["labels"] == {
        "a": {"reference": 2, "candidate": 1, "lost": 1, "gained": 0},
        "b": {"reference": 1, "candidate": 1, "lost": 0, "gained": 0},
    }
    (worst,) = comparison.as_json()["worst"]
    assert (worst["text"], worst["text_pair"], worst["candidate"]["labels"]) == ("x", "y", [])


def test_labels_that_one_side_does_not_tell_are_not_compared() -> None:
    assert score_difference(answer("a", a=0.9), answer("a", a=0.7, b=0.3)) == pytest.approx(0.2)
    assert score_difference(answer("a"), answer("a", a=0.7)) == 0
