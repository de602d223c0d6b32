"""Variants of texts keep what they promise; neighbors against scikit-learn's."""

import random
from collections import Counter

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from compress.augment import augment, nearest_words, replace_words, span_crop, span_swap, word_dropout

TEXT = "it was a good movie , with a plot that nobody saw coming"
NEIGHBORS = {"movie": ("film",), "good": ("great", "fine")}
ALL = {"crop": 0.5, "dropout": 0.3, "swap": 0.5, "replacement": 0.4, "neighbors": NEIGHBORS}
NONE = {"crop": 0.0, "dropout": 0.0, "swap": 0.0, "replacement": 0.0, "neighbors": {}}


def source(seed: int = 0) -> random.Random:
    return random.Random(seed)


def test_dropout_keeps_order_and_the_share_it_should() -> None:
    words = [str(i) for i in range(10_000)]
    kept = word_dropout(words, 0.3, source())
    assert [int(word) for word in kept] == sorted(int(word) for word in kept)
    assert len(kept) == pytest.approx(7000, abs=4 * np.sqrt(10_000 * 0.3 * 0.7))


def test_dropout_leaves_one_word() -> None:
    for seed in range(20):
        assert len(word_dropout(["a", "b", "c"], 0.999999, source(seed))) == 1


@pytest.mark.parametrize("count", [1, 4, 5, 12, 101])
def test_a_crop_is_a_span_of_a_quarter_to_three_quarters(count: int) -> None:
    words = [str(i) for i in range(count)]
    sizes, starts = set(), set()
    for seed in range(300):
        cropped = span_crop(words, source(seed))
        start = int(cropped[0])
        assert cropped == words[start : start + len(cropped)]
        sizes.add(len(cropped))
        starts.add(start)
    if count < 5:
        assert sizes == {count}
    else:
        assert min(sizes) >= max(2, count // 4)
        assert max(sizes) <= 3 * count // 4
        assert 0 in starts
        assert max(starts) >= count - max(2, count // 4) - count // 10
        assert count > 12 or sizes == set(range(max(2, count // 4), 3 * count // 4 + 1))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_a_swap_exchanges_two_spans(count: int) -> None:
    words = [str(i) for i in range(count)]
    for seed in range(50):
        swapped = span_swap(words, source(seed))
        assert sorted(swapped, key=int) == words
        moved = [i for i, word in enumerate(swapped) if int(word) != i]
        assert (len(moved) > 0) == (count > 1)
        assert len(moved) <= 6
        if moved:  # two runs of the same length, each the other's words in order
            half = len(moved) // 2
            assert [int(swapped[i]) for i in moved] == moved[half:] + moved[:half]


def test_replacing_keeps_punctuation_and_words_without_neighbors() -> None:
    words = ["(Movie),", "unknown", "...", "don't", "good"]
    neighbors = {"movie": ("film",), "good": ("great", "fine")}
    *others, last = replace_words(words, 1.0, neighbors, source())
    assert others == ["(film),", "unknown", "...", "don't"]
    assert last in ("great", "fine")
    assert replace_words(words, 0.0, neighbors, source()) == words
    drawn = Counter(replace_words(["good"] * 4000, 0.5, neighbors, source()))
    assert drawn["good"] == pytest.approx(2000, abs=130)
    assert drawn["fine"] == pytest.approx(1000, abs=120)


@pytest.mark.parametrize(("begin", "go_on"), [("", "##"), ("Ġ", ""), ("▁", "")], ids=["wordpiece", "bpe", "pieces"])
def test_neighbors_are_scikit_learns_among_whole_words(begin: str, go_on: str) -> None:
    words = [a + b for a in "bcdfghjklmnpqrstvwxz" for b in "aeiou"]  # 100
    parts = [go_on + letter for letter in "abcdefghij"]
    tokens = ["[PAD]", "<s>", *parts, *(begin + word for word in [*words, "12", "don't"])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    embeddings = np.random.default_rng(0).normal(size=(len(tokens), 16)).astype(np.float32)
    rows = [vocabulary[begin + word] for word in words]
    reference = NearestNeighbors(n_neighbors=6, metric="cosine").fit(embeddings[rows])
    _, nearest = reference.kneighbors(embeddings[rows])
    found = nearest_words([" ".join(words)], embeddings, vocabulary, 5)
    assert found == {word: tuple(words[j] for j in nearest[i][1:]) for i, word in enumerate(words)}


def test_words_that_byte_level_bpe_spells_otherwise_are_left_out() -> None:
    vocabulary = {"Ġgood": 0, "Ġbad": 1, "ĠÃª": 2}  # the last is "ê"
    assert nearest_words(["good Ãª"], np.eye(3, dtype=np.float32), vocabulary, 5) == {"good": ("bad",)}


def test_neighbors_are_found_for_the_words_of_every_form_of_input() -> None:
    vocabulary = {"good": 0, "bad": 1, "film": 2, "plot": 3, "unused": 4}
    embeddings = np.eye(5, dtype=np.float32) + 1
    found = nearest_words(["Good, unknown", ("a (bad) one", "my film"), ["plot", "!"]], embeddings, vocabulary, 2)
    assert sorted(found) == ["bad", "film", "good", "plot"]
    assert all(len(names) == 2 and word not in names for word, names in found.items())
    assert len(nearest_words(["good"], embeddings, vocabulary, 99)["good"]) == 4


def test_a_variant_has_the_form_of_its_input() -> None:
    inputs = [TEXT, ("a good movie", "it was"), TEXT.split(), "word"]
    variants = augment(inputs, 3, **ALL, seed=1)
    assert len(variants) == 12
    assert [type(v) for v in variants] == [str] * 3 + [tuple] * 3 + [list] * 3 + [str] * 3
    for variant in variants:
        parts = [variant] if isinstance(variant, str) else list(variant)
        assert parts
        assert all(part.strip() for part in parts)
    assert all(" " not in word for words in variants[6:9] for word in words)
    assert len(set(variants[:3])) == 3


def test_nothing_asked_for_changes_nothing() -> None:
    inputs = [TEXT, ("a good movie", "it was"), TEXT.split()]
    assert augment(inputs, 2, **NONE, seed=1) == [item for item in inputs for _ in range(2)]
    assert augment(inputs, 0, **ALL, seed=1) == []


def test_the_seed_decides_each_variant_by_its_place_alone() -> None:
    texts = [TEXT, TEXT, "a good movie with a plot"]
    variants = augment(texts, 2, **ALL, seed=1)
    assert augment(texts, 2, **ALL, seed=1) == variants
    assert augment(texts, 2, **ALL, seed=2) != variants
    assert augment(texts[:2], 2, **ALL, seed=1) == variants[:4]
    assert augment(texts, 5, **ALL, seed=1)[5:7] == variants[2:4]
    assert variants[0] != variants[2]


def test_variants_are_the_same_on_every_machine() -> None:
    """Python promises the draws of `random()` for a seed; a change here changes the outcome of recipes."""
    variants = augment(["one two three four five six"], 2, **ALL, seed=13)
    assert variants == ["one two three", "four two"]
