"""What a student must beat to be worth its latency: TF-IDF, or static embeddings, under logistic regression."""

import functools
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

from bundle.manifest import Task
from compress.errors import DataError
from compress.examples import Example
from compress.static_embeddings import FloatArray, StaticEmbeddings

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_MOST_TRAINING_ROWS = 250_000
"""Texts, or words of token classification; beyond it a seeded sample is trained on, so that memory is bounded."""
_MOST_FEATURES = 200_000
_CHUNK = 1_000
_TIMED_TEXTS, _ROUNDS = 100, 5

# Chosen on the validation splits of movie reviews, CoNLL-2003 and pairs of its sentences.
_TFIDF_HEAD = {"C": 10.0, "max_iter": 1_000}
_TFIDF_WORDS_HEAD = {"C": 10.0, "solver": "saga", "max_iter": 10, "tol": 1e-3}  # lbfgs: the same in 7 × the time
_STATIC_HEAD = {"C": 0.1, "max_iter": 50}

_TOKEN_PATTERN = r"\w+|[^\w\s]"  # noqa: S105 - a regular expression
"""Words and single marks, so that only blank texts have no token."""


@dataclass(frozen=True)
class Predictions:
    """What a baseline said about the test texts, and what it costs."""

    decisions: IntArray | BoolArray | list[list[str]]
    """Label ids (N,); multi-label: (N, C) bool; token classification: for each text a list of tags, one a word."""
    size_bytes: int
    """The model's arrays; vocabularies, like a student's tokenizer, are not counted."""
    latency_ms: float
    """From one text to its decision, in this process on one thread: median of the rounds."""


def tfidf_predict(
    task: Task, train: Sequence[Example], test: Sequence[Example], labels: Sequence[str], seed: int
) -> Predictions:
    """Train TF-IDF + logistic regression on `train`, predict `test`; the same seed gives the same decisions.

    Texts: word 1-2-grams with sublinear counts. Pairs: the vectors of both texts, their elementwise product and its
    sum, the cosine. Multi-label: one regression a label, threshold 0.5. Token classification: each word alone, from
    the word, its shape and affixes, and the words and shapes up to two away. Raises DataError.
    """
    options = _TFIDF_WORDS_HEAD if task is Task.TOKEN_CLASSIFICATION else _TFIDF_HEAD
    return _predict(_Tfidf(task), options, task, train, test, labels, seed)


def static_predict(
    task: Task,
    train: Sequence[Example],
    test: Sequence[Example],
    labels: Sequence[str],
    model: nn.Module,
    tokenizer_path: Path,
    seed: int,
) -> Predictions:
    """Train logistic regression on static embeddings of `model`'s encoder, predict `test`.

    Texts: the mean of the tokens' vectors. Pairs u, v: [u, v, |u - v|, u * v]. Multi-label: one regression a label,
    threshold 0.5. Token classification: each word alone, from the vectors of the words before, at and after it.
    The same seed gives the same decisions. Raises DataError and ModelError.
    """
    return _predict(_Static(task, model, tokenizer_path), _STATIC_HEAD, task, train, test, labels, seed)


class _Features(Protocol):
    """Rows of numbers: one a text, or one a word for token classification."""

    def fit(self, examples: Sequence[Example]) -> None: ...
    def transform(self, examples: Sequence[Example]) -> Any: ...
    @property
    def size_bytes(self) -> int: ...


class _Tfidf:
    def __init__(self, task: Task) -> None:
        self._task = task
        options: dict[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": _TOKEN_PATTERN}
        if task is Task.TOKEN_CLASSIFICATION:
            options = {"analyzer": _as_it_is}
        self._vectorizer = TfidfVectorizer(max_features=_MOST_FEATURES, dtype=np.float32, **options)

    def fit(self, examples: Sequence[Example]) -> None:
        try:
            self._vectorizer.fit(self._documents(examples))
        except ValueError as error:  # an empty vocabulary
            raise DataError(
                f"{examples[0].source} and {len(examples) - 1} more rows: no word to make features of; expected texts "
                "that are not blank"
            ) from error

    def transform(self, examples: Sequence[Example]) -> Any:
        if self._task is not Task.PAIR:
            return self._vectorizer.transform(self._documents(examples))  # (N, F) sparse
        first = self._vectorizer.transform([example.text for example in examples])
        second = self._vectorizer.transform([example.text_pair or "" for example in examples])
        product = first.multiply(second).tocsr()
        return sp.hstack([first, second, product, sp.csr_matrix(product.sum(axis=1))]).tocsr()  # (N, 3F + 1)

    @property
    def size_bytes(self) -> int:
        return int(self._vectorizer.idf_.nbytes)

    def _documents(self, examples: Sequence[Example]) -> Iterator[Any]:
        for example in examples:
            if self._task is Task.TOKEN_CLASSIFICATION:
                yield from _word_features(example.words or ())
                continue
            yield example.text
            if example.text_pair is not None:
                yield example.text_pair


class _Static:
    def __init__(self, task: Task, model: nn.Module, tokenizer_path: Path) -> None:
        self._task = task
        self._embeddings = StaticEmbeddings(model, tokenizer_path)

    def fit(self, examples: Sequence[Example]) -> None:
        """There is nothing to learn from the examples."""

    def transform(self, examples: Sequence[Example]) -> FloatArray:
        if self._task is Task.TOKEN_CLASSIFICATION:
            return self._embeddings.windows([example.words or () for example in examples])
        first = self._embeddings.encode([example.text for example in examples])  # (N, D)
        if self._task is not Task.PAIR:
            return first
        second = self._embeddings.encode([example.text_pair or "" for example in examples])
        return np.hstack([first, second, np.abs(first - second), first * second])  # (N, 4D)

    @property
    def size_bytes(self) -> int:
        return self._embeddings.size_bytes


@dataclass(frozen=True)
class _Linear:
    """A logistic regression's decision: `classes` by the largest score, or by the sign of the only one."""

    classes: IntArray
    weights: NDArray[Any]
    """(K, F); one row for two classes, none where the training data knew one class only."""
    intercept: NDArray[Any]

    def predict(self, matrix: Any) -> IntArray:
        if len(self.classes) == 1:
            return np.full(matrix.shape[0], self.classes[0], dtype=np.int64)
        scores = matrix @ self.weights.T + self.intercept  # (N, K)
        if len(self.classes) == 2:
            return np.asarray(self.classes[(scores[:, 0] > 0).astype(np.int64)])
        return np.asarray(self.classes[scores.argmax(axis=1)])


def _predict(
    features: _Features,
    options: dict[str, Any],
    task: Task,
    train: Sequence[Example],
    test: Sequence[Example],
    labels: Sequence[str],
    seed: int,
) -> Predictions:
    labeled = _sample([example for example in train if example.target is not None], task, seed)
    if not labeled or not test:
        raise DataError(f"found {len(labeled)} labeled training rows and {len(test)} test rows; expected some of each")
    features.fit(labeled)
    heads = _fit(features.transform(labeled), _targets(task, labeled, labels), options, seed)

    def decide(examples: Sequence[Example]) -> IntArray:
        matrix = features.transform(examples)
        return np.stack([head.predict(matrix) for head in heads], axis=1)

    chunks = [decide(test[start : start + _CHUNK]) for start in range(0, len(test), _CHUNK)]
    return Predictions(
        decisions=_decisions(task, np.concatenate(chunks), test, labels),
        size_bytes=features.size_bytes + sum(head.weights.nbytes + head.intercept.nbytes for head in heads),
        latency_ms=_latency_ms(decide, test, seed),
    )


def _sample(examples: list[Example], task: Task, seed: int) -> list[Example]:
    """Return all of them, or a seeded sample of at most _MOST_TRAINING_ROWS rows of features (one text at least)."""
    rows = [len(example.words or ()) if task is Task.TOKEN_CLASSIFICATION else 1 for example in examples]
    if sum(rows) <= _MOST_TRAINING_ROWS:
        return examples
    order = np.random.default_rng(seed).permutation(len(examples))
    fitting = int(np.searchsorted(np.cumsum(np.array(rows)[order]), _MOST_TRAINING_ROWS, side="right"))
    return [examples[index] for index in sorted(order[: max(1, fitting)])]


def _targets(task: Task, examples: Sequence[Example], labels: Sequence[str]) -> list[IntArray]:
    """Return what each regression learns: one column of ids, or for multi-label a column of 0 and 1 for each label."""
    ids = {label: index for index, label in enumerate(labels)}
    if task is Task.MULTI_LABEL:
        return [np.array([label in (e.target or ()) for e in examples], dtype=np.int64) for label in labels]
    if task is Task.TOKEN_CLASSIFICATION:
        return [np.array([ids[tag] for e in examples for tag in e.target or ()], dtype=np.int64)]
    return [np.array([ids[str(e.target)] for e in examples], dtype=np.int64)]


def _fit(matrix: Any, targets: Sequence[IntArray], options: dict[str, Any], seed: int) -> list[_Linear]:
    mean, deviation = np.zeros(matrix.shape[1]), np.ones(matrix.shape[1])
    if not sp.issparse(matrix):  # in place: it is the largest array there is
        mean = matrix.mean(axis=0, dtype=np.float64)
        matrix -= mean.astype(np.float32)
        deviation = np.sqrt(np.einsum("nf,nf->f", matrix, matrix, dtype=np.float64) / len(matrix))
        deviation[deviation < 1e-6] = 1.0
        matrix /= deviation.astype(np.float32)
    heads = []
    for target in targets:
        classes: IntArray = np.unique(target)
        if len(classes) == 1:
            heads.append(_Linear(classes, np.zeros((0, matrix.shape[1])), np.zeros(0)))
            continue
        # one thread: the same sums on any machine, and no threads spinning for cores that others use
        with threadpool_limits(limits=1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early on purpose
            regression = LogisticRegression(random_state=seed, **options).fit(matrix, target)
        weights = (regression.coef_ / deviation).astype(np.float32)
        heads.append(_Linear(classes, weights, (regression.intercept_ - weights @ mean).astype(np.float32)))
    return heads


def _decisions(
    task: Task, predicted: IntArray, test: Sequence[Example], labels: Sequence[str]
) -> IntArray | BoolArray | list[list[str]]:
    if task is Task.MULTI_LABEL:
        return predicted.astype(bool)
    if task is not Task.TOKEN_CLASSIFICATION:
        return predicted[:, 0]
    tags = iter(predicted[:, 0].tolist())
    return [[labels[next(tags)] for _ in example.words or ()] for example in test]


def _latency_ms(decide: Callable[[Sequence[Example]], IntArray], test: Sequence[Example], seed: int) -> float:
    chosen = np.random.default_rng(seed).permutation(len(test))[:_TIMED_TEXTS]
    rounds = []
    with threadpool_limits(limits=1):
        for turn in range(_ROUNDS + 1):
            started = time.perf_counter()
            for index in chosen:
                decide([test[index]])
            if turn:  # the first warms up
                rounds.append((time.perf_counter() - started) * 1000 / len(chosen))
    return statistics.median(rounds)


def _as_it_is(features: list[str]) -> list[str]:
    return features


def _word_features(words: Sequence[str]) -> Iterator[list[str]]:
    padded = ["", "", *words, "", ""]
    for at, word in enumerate(words, start=2):
        features = list(_own_features(word))
        for offset in (-2, -1, 1, 2):
            features += [f"{offset}{feature}" for feature in _neighbor_features(padded[at + offset])]
        features.append(f"before={padded[at - 1].lower()} {word.lower()}")
        features.append(f"after={word.lower()} {padded[at + 1].lower()}")
        yield features


@functools.lru_cache(maxsize=65_536)
def _own_features(word: str) -> tuple[str, ...]:
    affixes = [(f"prefix={word[:n].lower()}", f"suffix={word[-n:].lower()}") for n in (2, 3, 4)]
    return (f"word={word}", *_neighbor_features(word), *(affix for pair in affixes for affix in pair))


@functools.lru_cache(maxsize=65_536)
def _neighbor_features(word: str) -> tuple[str, str]:
    letters = re.sub(r"[^\W\d_]", lambda match: "X" if match[0].isupper() else "x", word)
    shape = re.sub(r"(.)\1+", r"\1", re.sub(r"\d", "0", letters))
    return f"lower={word.lower()}", f"shape={shape}"
