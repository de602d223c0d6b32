"""Parts of the test split on which quality is looked at by itself: by a column, by length, by language."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

from compress.errors import DataError

BoolArray = NDArray[np.bool_]
Slices = dict[str, BoolArray]
"""Name -> which texts are in it (N,)."""

MAX_VALUES = 50
"""Most values of a column that is used for slices."""
MIN_LANGUAGE_SHARE = 0.01
"""Share of the texts that must surely be in a language before others are taken for it."""
MIN_LANGUAGE_PROBABILITY = 0.8
"""Below, a text's language is not stated and it is in no slice by language (one or two words, names, numbers)."""

_NOT_A_LANGUAGE = "zxx"


def by_column(column: str, values: Sequence[str | None]) -> Slices:
    """Return a slice for each value (N,) of the user's column; a text without a value is in none.

    Raises DataError when the column has more than MAX_VALUES values.
    """
    names = sorted({value for value in values if value is not None})
    if len(names) > MAX_VALUES:
        raise DataError(
            f"column {column!r} has {len(names)} values, such as {names[0]!r} and {names[1]!r}; slices need a column "
            f"of at most {MAX_VALUES}"
        )
    array = np.array(values, dtype=object)
    return _informative({f"{column}: {name}": array == name for name in names})


def by_length(tokens: Sequence[int]) -> Slices:
    """Return short, medium and long texts: the thirds of these texts by number of tokens (N,).

    Thirds rather than fixed bounds, because reviews and queries differ by a hundred times in length: fixed bounds
    leave most data sets with one slice, thirds give slices that are large enough to be judged. The bounds are in the
    names. Texts of equal length stay together, so thirds can be unequal or missing.
    """
    lengths = np.asarray(tokens, dtype=np.int64)
    if len(lengths) == 0:
        return {}
    ordered = np.sort(lengths)
    first, second = (int(ordered[math.ceil(len(ordered) * part) - 1]) for part in (1 / 3, 2 / 3))
    return _informative(
        {
            f"length: short (up to {first} tokens)": lengths <= first,
            f"length: medium ({first + 1} to {second} tokens)": (lengths > first) & (lengths <= second),
            f"length: long (over {second} tokens)": lengths > second,
        }
    )


def by_language(texts: Sequence[str]) -> Slices:
    """Return a slice for each language (ISO 639 code) of the texts (N,); none when there is only one.

    Texts are short and 139 languages are many, so there are two passes: the first finds the languages that the data
    surely hold, the second chooses among these alone. Lui & Baldwin (2012), with py3langid's model, which is on disk.
    """
    sure = Counter(language for language in _languages(texts, None) if language is not None)
    present = sorted(language for language, count in sure.items() if count >= MIN_LANGUAGE_SHARE * len(texts))
    if len(present) < 2:
        return {}
    found = np.array(_languages(texts, present), dtype=object)
    return _informative({f"language: {language}": found == language for language in present})


def find_slices(texts: Sequence[str], tokens: Sequence[int], columns: Mapping[str, Sequence[str | None]]) -> Slices:
    """Return the slices of N texts by each of the user's columns, by length and by language.

    A slice with no text, and one that holds them all, says nothing and is left out. Raises DataError as `by_column`.
    """
    result: Slices = {}
    for column, values in columns.items():
        result |= by_column(column, values)
    return result | by_length(tokens) | by_language(texts)


def _informative(slices: Slices) -> Slices:
    return {name: mask for name, mask in slices.items() if mask.any() and not mask.all()}


def _languages(texts: Sequence[str], among: Sequence[str] | None) -> list[str | None]:
    identifier = _identifier()
    identifier.set_languages(among)
    found = [identifier.classify(text) for text in texts]
    return [
        language if probability >= MIN_LANGUAGE_PROBABILITY and language != _NOT_A_LANGUAGE else None
        for language, probability in found
    ]


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
