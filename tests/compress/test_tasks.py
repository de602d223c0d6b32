"""What differs between tasks, against tokenizers' own words, scikit-learn and seqeval."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from seqeval.metrics import f1_score as entity_f1_score
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from bundle.manifest import Task
from compress.examples import Example
from compress.recipe import Data
from compress.rows import UNLABELED
from compress.tasks import SPECS
from service.engine.tokenization import Tokenizer
from tests.support.tokenizers import KINDS

SINGLE, MULTI, TAGS = SPECS[Task.SINGLE_LABEL], SPECS[Task.MULTI_LABEL], SPECS[Task.TOKEN_CLASSIFICATION]
TAG_LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]

SENTENCES = [
    ["New", "York", "is", "wonderful", "!"],
    ["😀", "東京", "café", "film's", "x😀", "👩‍👩‍👧"],
    ["\u200b", "New", "\u200b", "York"],  # no token of BERT's
    ["Anna-Maria", "1996-08-30", "e\u0301x", "ﬁlm", "…"],
    ["unbelievablylongword" * 3, "a"],
    ["y"],
]


@cache
def both(kind: str, folder: Path, max_length: int) -> tuple[Tokenizer, object]:
    """Our tokenizer, and tokenizers' own of the same file."""
    own = KINDS[kind]()
    path = folder / f"{kind}.json"
    own.save(str(path))
    own.enable_truncation(max_length)
    return Tokenizer(path, max_length), own


def example(words: Sequence[str], tags: Sequence[str] | None = None) -> Example:
    return Example(" ".join(words), None if tags is None else tuple(tags), "f:1", words=tuple(words))


def first_tokens(tokenizer: object, words: list[str]) -> list[tuple[int, int]]:
    """(token, word), as fine-tuning with transformers does it: the first token of each word_id."""
    found: dict[int, int] = {}
    for position, word in enumerate(tokenizer.encode(words, is_pretokenized=True).word_ids):
        if word is not None:
            found.setdefault(word, position)
    return [(position, word) for word, position in found.items()]


def ours(tokenizer: Tokenizer, words: list[str]) -> list[tuple[int, int]]:
    encoded = TAGS.encode(tokenizer, [example(words)], TAG_LABELS)
    assert encoded.positions is not None
    assert encoded.words is not None
    return list(zip(encoded.positions.tolist(), encoded.words.tolist(), strict=True))


@pytest.mark.parametrize("words", SENTENCES, ids=lambda words: words[0][:12])
@pytest.mark.parametrize("max_length", [128, 7, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_first_token_of_a_word(
    kind: str, max_length: int, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, reference = both(kind, tmp_path_factory.getbasetemp(), max_length)
    assert tokenizer.encode([" ".join(words)])[0].ids == reference.encode(words, is_pretokenized=True).ids
    assert ours(tokenizer, words) == first_tokens(reference, words)


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_look_like_special_tokens_have_rows(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer, _ = both(kind, tmp_path_factory.getbasetemp(), 128)
    words = ["[SEP]", "New", "</s>", "plot"]
    assert [word for _, word in ours(tokenizer, words)] == [0, 1, 2, 3]


letters = st.characters(categories=("L", "M", "N", "P", "S", "Cf"))
any_words = st.lists(st.text(letters | st.sampled_from("New Yorkplot'😀東京"), min_size=1, max_size=6), min_size=1)


@settings(max_examples=150, deadline=None)
@given(words=any_words, kind=st.sampled_from(list(KINDS)), max_length=st.sampled_from([128, 9]))
def test_any_words_are_aligned(
    words: list[str], kind: str, max_length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = [word for text in words for word in text.split()]
    if not words:
        return
    tokenizer, reference = both(kind, tmp_path_factory.getbasetemp(), max_length)
    if tokenizer.encode([" ".join(words)])[0].ids == reference.encode(words, is_pretokenized=True).ids:
        assert ours(tokenizer, words) == first_tokens(reference, words)


def test_words_that_are_cut_or_have_no_token_are_taken_for_no_entity(tmp_path: Path) -> None:
    tokenizer, _ = both("wordpiece", tmp_path, 6)
    words, tags = ["\u200b", "New", "York", "wonderful"], ["B-PER", "B-LOC", "I-LOC", "B-PER"]
    labeled = example(words, tags)
    encoded = TAGS.encode(tokenizer, [labeled], TAG_LABELS)
    assert encoded.words.tolist() == [1, 2]
    assert encoded.targets.tolist() == [1, 2]
    decisions = np.array([1, 2])
    assert TAGS.tag_lists([labeled], encoded, decisions, TAG_LABELS) == [["O", "B-LOC", "I-LOC", "O"]]
    counts = TAGS.count([labeled], encoded, decisions, TAG_LABELS)
    assert TAGS.measure(counts) == pytest.approx(entity_f1_score([tags], [["O", "B-LOC", "I-LOC", "O"]]))
    assert TAGS.measure(counts) < 1


def test_entity_f1_of_many_texts_is_seqevals(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    tokenizer, _ = both("byte-level", tmp_path, 32)
    words = [source.choice(["New", "York", "plot", "東京", "wonderful"], size=n).tolist() for n in range(1, 31)]
    examples = [example(own, source.choice(TAG_LABELS, size=len(own))) for own in words]
    encoded = TAGS.encode(tokenizer, examples, TAG_LABELS)
    logits = source.normal(size=(int(encoded.first[-1]), len(TAG_LABELS))).astype(np.float32)
    decisions = TAGS.decide(logits, None)
    assert decisions.tolist() == logits.argmax(axis=1).tolist()
    found = TAGS.tag_lists(examples, encoded, decisions, TAG_LABELS)
    assert any(encoding.truncated for encoding in encoded.encodings)
    expected = entity_f1_score([list(e.target) for e in examples], found)
    assert TAGS.measure(TAGS.count(examples, encoded, decisions, TAG_LABELS)) == pytest.approx(expected)


def test_unlabeled_words_have_no_target(tmp_path: Path) -> None:
    tokenizer, _ = both("sentencepiece", tmp_path, 32)
    encoded = TAGS.encode(tokenizer, [example(["New", "York"])], TAG_LABELS)
    assert encoded.targets.tolist() == [UNLABELED, UNLABELED]


def test_sets_of_labels_become_zeros_and_ones() -> None:
    sets = [("b", "a"), (), ("c",)]
    examples = [*(Example("t", labels, "f:1") for labels in sets), Example("t", None, "f:2")]
    targets = MULTI.targets(examples, ["a", "b", "c"])
    assert np.array_equal(targets[:3], MultiLabelBinarizer(classes=["a", "b", "c"]).fit_transform(sets))
    assert (targets[3] == UNLABELED).all()
    assert MULTI.label_names(examples[:3]) == ["a", "b", "c"]


@pytest.mark.parametrize("thresholds", [None, np.array([0.2, 0.9, 0.5])])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_labels_are_decided_by_their_thresholds(thresholds: np.ndarray | None, temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32) * 3
    expected = expit(logits / temperature) >= (0.5 if thresholds is None else thresholds)
    assert np.array_equal(MULTI.decide(logits, thresholds, temperature), expected)


def test_main_metrics_are_those_of_scikit_learn() -> None:
    source = np.random.default_rng(0)
    labels = ["a", "b", "c"]
    truth, logits = source.integers(0, 3, size=50), source.normal(size=(50, 3)).astype(np.float32)
    examples = [Example("t", labels[index], "f:1") for index in truth]
    encoded = SPECS[Task.SINGLE_LABEL].encode(_Nothing(), examples, labels)
    found = SINGLE.measure(SINGLE.count(examples, encoded, SINGLE.decide(logits, None), labels))
    assert found == pytest.approx(accuracy_score(truth, logits.argmax(axis=1)))
    sets = source.integers(0, 2, size=(50, 3))
    examples = [Example("t", tuple(np.array(labels)[row == 1]), "f:1") for row in sets]
    encoded = MULTI.encode(_Nothing(), examples, labels)
    found = MULTI.measure(MULTI.count(examples, encoded, MULTI.decide(logits, None), labels))
    assert found == pytest.approx(f1_score(sets, logits >= 0, average="micro"))


class _Nothing:
    """A tokenizer for tests that look at targets only."""

    def encode(self, inputs: Sequence[object]) -> list[None]:
        return [None] * len(inputs)


def test_tags_are_written_on_one_line_and_types_count_for_the_rows_of_a_label() -> None:
    tagged = example(["New", "York", "Anna"], ["B-LOC", "I-LOC", "B-PER"])
    assert TAGS.target_text(tagged) == "B-LOC I-LOC B-PER"
    assert TAGS.labels_of(tagged) == ("LOC", "PER")
    assert TAGS.tag_scheme(TAG_LABELS) == "IOB2"
    assert MULTI.target_text(Example("t", ("a", "b"), "f:1")) == "a|b"
    assert TAGS.prepare([[tagged]], Data(folder=Path("d"))) == [[tagged]]
