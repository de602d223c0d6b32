"""Variants of training texts, for the teacher to label: no model is downloaded, and a seed decides everything."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Text = str | tuple[str, str] | list[str]
"""A text, a pair of texts, or a list of words (token classification)."""

T = TypeVar("T", bound=Text)

_CORE = re.compile(r"(\W*)(\w+)(\W*)")
"""A word with the punctuation around it."""
_WORD_MARKERS = ("Ġ", "▁")
"""What byte-level BPE and SentencePiece put before a token that begins a word."""
_CHUNK = 512
_SHORTEST_CROPPED = 5


def augment(
    inputs: Sequence[T],
    copies: int,
    *,
    crop: float,
    dropout: float,
    swap: float,
    replacement: float,
    neighbors: Mapping[str, Sequence[str]],
    seed: int,
) -> list[T]:
    """Return `copies` variants of each input, in order and in the input's form: N × copies items.

    A variant is made in four steps: with probability `crop` a part of the text is kept and the rest dropped; each word
    is replaced by one of its `neighbors` with probability `replacement` (see `nearest_words`), left out with
    probability `dropout`, and with probability `swap` two spans change places. The texts of a pair vary separately. No
    variant is empty; a short text may come back as it is. Words of a text are what stands between white space, and a
    variant has single spaces. Each variant depends on the seed, the input's place and the number of the copy alone.
    """

    def vary(words: Sequence[str], source: random.Random) -> list[str]:
        kept = span_crop(words, source) if source.random() < crop else words
        varied = word_dropout(replace_words(kept, replacement, neighbors, source), dropout, source)
        return span_swap(varied, source) if source.random() < swap else varied

    variants: list[Any] = []
    for index, item in enumerate(inputs):
        for copy in range(copies):
            source = random.Random(f"{seed} {index} {copy}")  # noqa: S311 - not for secrets
            if isinstance(item, list):
                variants.append(vary(item, source))
            elif isinstance(item, str):
                variants.append(" ".join(vary(item.split(), source)))
            else:
                first, second = item
                variants.append((" ".join(vary(first.split(), source)), " ".join(vary(second.split(), source))))
    return cast(list[T], variants)


def span_crop(words: Sequence[str], source: random.Random) -> list[str]:
    """Return a span of the words, a quarter to three quarters of them and at least two; four words or fewer stay.

    The parts of a text often mean something else than the whole, which is what a small student must learn to see.
    """
    count = len(words)
    if count < _SHORTEST_CROPPED:
        return list(words)
    shortest = max(2, count // 4)
    size = shortest + _below(3 * count // 4 - shortest + 1, source)
    start = _below(count - size + 1, source)
    return list(words[start : start + size])


def word_dropout(words: Sequence[str], probability: float, source: random.Random) -> list[str]:
    """Return the words without those left out, each with `probability`; one word always stays (Iyyer et al. 2015)."""
    kept = [word for word in words if source.random() >= probability]
    return kept or [words[_below(len(words), source)]]


def span_swap(words: Sequence[str], source: random.Random, longest: int = 3) -> list[str]:
    """Return the words with two spans of the same length, at most `longest` words, in each other's place."""
    count = len(words)
    if count < 2:
        return list(words)
    size = 1 + _below(min(longest, count // 2), source)
    first = _below(count - 2 * size + 1, source)
    second = first + size + _below(count - 2 * size - first + 1, source)
    swapped = list(words)
    swapped[first : first + size], swapped[second : second + size] = (
        swapped[second : second + size],
        swapped[first : first + size],
    )
    return swapped


def replace_words(
    words: Sequence[str], probability: float, neighbors: Mapping[str, Sequence[str]], source: random.Random
) -> list[str]:
    """Return the words, each with `probability` replaced by one of its neighbors; Jiao et al. 2020, algorithm 1.

    Punctuation around a word stays. A word that has no neighbors stays, too.
    """
    replaced = []
    for word in words:
        match = _CORE.fullmatch(word)
        choices = _lookup(match[2], neighbors) if match else None
        if match and choices and source.random() < probability:
            word = f"{match[1]}{choices[_below(len(choices), source)]}{match[3]}"
        replaced.append(word)
    return replaced


def nearest_words(
    inputs: Iterable[Text], embeddings: NDArray[Any], vocabulary: Mapping[str, int], k: int
) -> dict[str, tuple[str, ...]]:
    """Return the `k` nearest other words, nearest first, of each word of `inputs` that is a token of its own.

    Nearness is the cosine of rows of `embeddings` (V, H), a model's input embeddings; `vocabulary` maps tokens to row
    numbers. Words are tokens of letters only that begin a word (so "##ing" is none). Jiao et al. 2020, algorithm 1,
    which takes GloVe vectors for words that are several tokens, and a masked language model for the others.
    """
    whole = _whole_words(vocabulary)
    names = list(whole)
    vectors = embeddings[list(whole.values())].astype(np.float32)  # (W, H)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    places = {name: place for place, name in enumerate(names)}
    wanted = sorted({place for word in _words(inputs) if (place := _lookup(word, places)) is not None})
    kept, found = min(k, len(names) - 1), {}
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        cosines = vectors[chunk] @ vectors.T  # (chunk, W)
        for place, row in zip(chunk, cosines, strict=True):
            row[place] = -np.inf
            nearest = np.argpartition(-row, kept)[:kept]
            nearest = nearest[np.lexsort((nearest, -row[nearest]))]
            found[names[place]] = tuple(names[other] for other in nearest)
    return found


def _below(count: int, source: random.Random) -> int:
    """Draw from 0 … count − 1 by `random()`, whose numbers are the same in every version of Python."""
    return int(source.random() * count)


def _whole_words(vocabulary: Mapping[str, int]) -> dict[str, int]:
    marker = next((m for m in _WORD_MARKERS if sum(t.startswith(m) for t in vocabulary) * 4 > len(vocabulary)), "")
    words = {t.removeprefix(marker): id_ for t, id_ in vocabulary.items() if t.startswith(marker)}
    # byte-level BPE writes letters beyond ASCII as other characters
    return {word: id_ for word, id_ in words.items() if word.isalpha() and (marker != "Ġ" or word.isascii())}


def _words(inputs: Iterable[Text]) -> Iterator[str]:
    for item in inputs:
        for part in [item] if isinstance(item, str) else item:
            for word in part.split():
                if match := _CORE.fullmatch(word):
                    yield match[2]


_Found = TypeVar("_Found")


def _lookup(word: str, table: Mapping[str, _Found]) -> _Found | None:
    """Return the entry of a word or, in a vocabulary without capitals, that of its small letters."""
    return table.get(word, table.get(word.lower()))
