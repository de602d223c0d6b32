"""Overlap of splits whose shared rows are known."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from compress.overlap import Overlap, Shared, find_overlap, normalise


@dataclass(frozen=True)
class Row:
    text: str
    target: str | tuple[str, ...] | None = "a"
    source: str = "?"
    text_pair: str | None = None


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Good  movie\n", "good movie"),
        ("ＧＯＯＤ ｍｏｖｉｅ", "good movie"),
        ("straße", "STRASSE"),
        ("caf\u0065\u0301", "café"),
        ("a\u00a0b\u2003c", "a b c"),
        ("ﬁne", "fine"),
        ("ΰ", "Ϋ́"),
        ("\u0345\u0301", "\u0301\u03b9"),
    ],
)
def test_what_counts_as_the_same_text(text: str, same: str) -> None:
    assert normalise(text) == normalise(same)
    assert normalise(normalise(text)) == normalise(text)


def test_other_texts_stay_apart() -> None:
    assert normalise("Good movie!") != normalise("Good movie")
    assert normalise("goodmovie") != normalise("good movie")


def test_rows_are_counted_with_their_sources() -> None:
    test = [Row("One", "a", "test:1"), Row("two", "a", "test:2"), Row("ONE ", "b", "test:3")]
    train = [Row("zero", "a", "train:1"), Row("one", "a", "train:2"), Row(" one", "a", "train:3")]
    assert find_overlap(test, train) == Overlap(
        rows=2,
        other_target=1,
        examples=(Shared("One", None, "test:1", "train:2"), Shared("ONE ", None, "test:3", "train:2")),
    )
    assert find_overlap(test, []) == Overlap(0, 0, ())


def test_another_target_in_any_place_counts_and_no_target_does_not() -> None:
    train = [Row("one", "a"), Row("one", "b"), Row("two", None), Row("three", ("x", "y"))]
    found = find_overlap([Row("one", "a"), Row("two", "a"), Row("one", None), Row("three", ("x", "y"))], train)
    assert (found.rows, found.other_target) == (4, 1)


def test_a_pair_is_the_same_when_both_texts_are() -> None:
    train = [Row("one", text_pair="two"), Row("one")]
    assert find_overlap([Row("ONE", text_pair="Two")], train).rows == 1
    assert find_overlap([Row("one", text_pair="three"), Row("two", text_pair="one")], train).rows == 0
    assert find_overlap([Row("one", text_pair="")], train).rows == 0


def test_only_the_first_examples_are_kept() -> None:
    rows = [Row(str(i), source=f"test:{i}") for i in range(100)]
    found = find_overlap(rows, rows)
    assert found.rows == 100
    assert [shared.source for shared in found.examples] == [f"test:{i}" for i in range(5)]


@pytest.mark.skipif("LIMBECK_TEST_DATA" not in os.environ, reason="LIMBECK_TEST_DATA is not set")
def test_conll2003_has_test_rows_in_train() -> None:
    splits = {}
    for name in ("train", "test"):
        file = Path(os.environ["LIMBECK_TEST_DATA"]) / "conll2003" / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        splits[name] = [
            Row(" ".join(row["tokens"]), tuple(row["tags"]), f"{name}:{i}") for i, row in enumerate(rows, start=1)
        ]
    texts = {row.text for row in splits["train"]}
    assert sum(row.text in texts for row in splits["test"]) == 126, "equal character by character"
    assert find_overlap(splits["test"], splits["train"]).rows == 126 + 6, "six more differ in case: Division One"
