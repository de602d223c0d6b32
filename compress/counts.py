"""What each text adds to the quality of predictions."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.tags import spans

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """What each of N texts adds to every metric."""

    names: tuple[str, ...]
    """K labels, or entity types (token classification)."""
    hits: IntArray
    """(N, K) labels (entities) that were expected and predicted."""
    predicted: IntArray
    """(N, K)"""
    support: IntArray
    """(N, K) labels (entities) that were expected."""
    correct: IntArray
    """(N,) right decisions: texts (multi-label: the exact set), or words (token classification)."""
    decisions: IntArray
    """(N,) all decisions; 1 a text, or its number of words."""

    def __len__(self) -> int:
        return len(self.decisions)


def count_single(expected: IntArray, predicted: IntArray, labels: Sequence[str]) -> Counts:
    """Count texts with one label each; both are (N,) int64 label ids. Raises ValueError on an id that is none."""
    _same_number(expected, predicted)
    for ids in (expected, predicted):
        wrong = np.flatnonzero((ids < 0) | (ids >= len(labels)))
        if len(wrong):
            raise ValueError(f"text {wrong[0]} has the label id {ids[wrong[0]]}; expected 0 to {len(labels) - 1}")
    identity = np.eye(len(labels), dtype=np.int64)
    right = expected == predicted
    return Counts(
        names=tuple(labels),
        hits=identity[expected] * right[:, None],
        predicted=identity[predicted],
        support=identity[expected],
        correct=right.astype(np.int64),
        decisions=np.ones(len(expected), dtype=np.int64),
    )


def count_multi(expected: BoolArray, predicted: BoolArray, labels: Sequence[str]) -> Counts:
    """Count texts with any number of labels; both are (N, C) bool. A text is right when its set is exactly right."""
    _same_number(expected, predicted)
    for columns in (expected, predicted):
        if columns.ndim != 2 or columns.shape[1] != len(labels):
            raise ValueError(f"found shape {columns.shape}; expected (texts, {len(labels)})")
    return Counts(
        names=tuple(labels),
        hits=(expected & predicted).astype(np.int64),
        predicted=predicted.astype(np.int64),
        support=expected.astype(np.int64),
        correct=(expected == predicted).all(axis=1).astype(np.int64),
        decisions=np.ones(len(expected), dtype=np.int64),
    )


def count_tags(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Counts:
    """Count entities by type and words; an entity is a hit when its type and both its ends are right.

    This is seqeval's default mode (Nakayama 2018; after conlleval, Tjong Kim Sang & Buchholz 2000). The names are the
    types that either side has, sorted. Raises ValueError on texts of different lengths or a tag that is none.
    """
    _same_number(expected, predicted)
    correct, entities = [], []
    for text, (own, found) in enumerate(zip(expected, predicted, strict=True)):
        if len(own) != len(found):
            raise ValueError(f"text {text}: expected {len(own)} tags, a tag for each word; found {len(found)}")
        try:
            entities.append((set(spans(own)), set(spans(found))))
        except ValueError as error:
            raise ValueError(f"text {text}: {error}") from error
        correct.append(sum(a == b for a, b in zip(own, found, strict=True)))
    names = tuple(sorted({span[0] for both in entities for side in both for span in side}))
    column = {name: index for index, name in enumerate(names)}
    hits, guesses, support = (np.zeros((len(expected), len(names)), dtype=np.int64) for _ in range(3))
    for text, (own_spans, found_spans) in enumerate(entities):
        for counter, group in ((hits, own_spans & found_spans), (guesses, found_spans), (support, own_spans)):
            for span in group:
                counter[text, column[span[0]]] += 1
    words = np.array([len(tags) for tags in expected], dtype=np.int64)
    return Counts(names, hits, guesses, support, np.array(correct, dtype=np.int64), words)


def subset(counts: Counts, mask: BoolArray) -> Counts:
    """Return the counts of the texts where `mask` (N,) is true."""
    arrays = (counts.hits, counts.predicted, counts.support, counts.correct, counts.decisions)
    return Counts(counts.names, *(array[mask] for array in arrays))


def _same_number(expected: Sized, predicted: Sized) -> None:
    if len(expected) != len(predicted):
        raise ValueError(f"found {len(expected)} expected and {len(predicted)} predicted texts; expected as many")
