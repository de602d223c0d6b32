"""Slices of data whose parts are known."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import slices
from compress.errors import DataError
from compress.slices import by_column, by_language, by_length, find_slices

ENGLISH = [
    "The film is a delight from its first scene to the last.",
    "Nobody in the audience laughed, and I can see why.",
    "This is one of the best stories that I have heard this year.",
]
GERMAN = [
    "Der Film ist von der ersten bis zur letzten Szene ein Vergnügen.",
    "Niemand im Publikum hat gelacht, und ich verstehe auch, warum.",
]
RUSSIAN = ["Этот фильм очень хороший, и мне он понравился с первой минуты."]


def test_a_column_gives_a_slice_for_each_value() -> None:
    found = by_column("channel", ["mail", "chat", None, "mail"])
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "channel: chat": [False, True, False, False],
        "channel: mail": [True, False, False, True],
    }
    assert all(mask.dtype == np.bool_ for mask in found.values())


def test_a_column_that_says_nothing_gives_no_slice() -> None:
    assert by_column("channel", ["mail", "mail"]) == {}
    assert by_column("channel", [None, None]) == {}
    assert list(by_column("channel", ["mail", None])) == ["channel: mail"]


def test_a_column_of_too_many_values_is_refused() -> None:
    by_column("id", [str(i) for i in range(50)])
    with pytest.raises(DataError, match=r"column 'id' has 51 values, such as '0' and '1'; .* at most 50"):
        by_column("id", [str(i) for i in range(51)])


def test_thirds_by_length_name_their_bounds() -> None:
    found = by_length([9, 1, 5, 2, 6, 30])
    assert {name: np.flatnonzero(mask).tolist() for name, mask in found.items()} == {
        "length: short (up to 2 tokens)": [1, 3],
        "length: medium (3 to 6 tokens)": [2, 4],
        "length: long (over 6 tokens)": [0, 5],
    }


def test_texts_of_equal_length_stay_together() -> None:
    assert list(by_length([4, 4, 4, 4, 9])) == ["length: short (up to 4 tokens)", "length: long (over 4 tokens)"]
    assert by_length([4, 4, 4]) == {}
    assert by_length([]) == {}


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=3, max_size=60, unique=True))
def test_every_text_is_in_one_third_and_thirds_are_even(lengths: list[int]) -> None:
    masks = np.array(list(by_length(lengths).values()))
    assert (masks.sum(axis=0) == 1).all()
    sizes = masks.sum(axis=1)
    assert sizes.max() - sizes.min() <= 1


def test_languages_are_told_apart() -> None:
    texts = ENGLISH * 10 + GERMAN * 10 + RUSSIAN * 10
    found = by_language(texts)
    assert {name: mask.sum() for name, mask in found.items()} == {
        "language: de": 20,
        "language: en": 30,
        "language: ru": 10,
    }
    assert found["language: en"][:30].all()
    assert found["language: de"][30:50].all()


def test_one_language_gives_no_slice() -> None:
    assert by_language(ENGLISH * 5) == {}
    assert by_language([]) == {}


def test_a_language_of_less_than_one_text_in_a_hundred_gives_no_slice() -> None:
    assert by_language(ENGLISH * 50 + GERMAN[:1]) == {}


def test_names_and_numbers_are_in_no_language() -> None:
    found = by_language([*ENGLISH * 5, *GERMAN * 5, "12345 !!", "Nadim Ladki", ""])
    assert not any(mask[-3:].any() for mask in found.values())


def test_no_network_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("languages are found with what is on disk")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(slices, "_identifier", slices._identifier.__wrapped__)  # loads its model anew
    assert len(by_language(ENGLISH + GERMAN)) == 2


def test_all_kinds_of_slices_stand_side_by_side() -> None:
    texts = ENGLISH + GERMAN
    found = find_slices(texts, [len(text.split()) for text in texts], {"from": ["a", "b", "a", "b", "a"]})
    assert [name.partition(":")[0] for name in found] == ["from", "from", *["length"] * 3, *["language"] * 2]
    assert all(mask.shape == (5,) for mask in found.values())


@pytest.mark.skipif("LIMBECK_TEST_DATA" not in os.environ, reason="LIMBECK_TEST_DATA is not set")
@pytest.mark.parametrize("name", ["movie-reviews", "entity-types", "same-document"])
def test_real_english_is_one_language(name: str) -> None:
    file = Path(os.environ["LIMBECK_TEST_DATA"]) / name / "test.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert by_language(texts) == {}
