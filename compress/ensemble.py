"""What models with several tokenizers say of the same rows, put together."""

import numpy as np
from numpy.typing import NDArray

from compress.rows import Encoded, FloatArray, IdArray


class Average:
    """The average by weight of what several teachers say of each row, over those that say anything of it.

    Rows are those of `reference`, R of them with C labels. A teacher with another tokenizer may have cut a text
    elsewhere: its rows are found by text and word, and words that it did not see are left to the others.
    """

    def __init__(self, reference: Encoded, labels: int) -> None:
        self._reference = reference
        self._sum = np.zeros((int(reference.first[-1]), labels))
        self._weight = np.zeros(len(self._sum))

    def add(self, logits: FloatArray, weight: float, own: Encoded) -> None:
        """Add the logits of the rows of `own`, the same texts as another tokenizer gives them."""
        mine, theirs = _places(self._reference), _places(own)
        at = np.searchsorted(theirs, mine).clip(max=max(0, len(theirs) - 1))
        rows = np.flatnonzero(theirs[at] == mine) if len(theirs) else np.empty(0, dtype=np.int64)
        self.add_rows(rows, logits[at[rows]], weight)

    def add_rows(self, rows: IdArray, logits: FloatArray, weight: float) -> None:
        """Add logits (K, C) of K rows, none of them twice."""
        self._sum[rows] += weight * logits
        self._weight[rows] += weight

    def logits(self) -> FloatArray:
        """Return the average (R, C) float32."""
        return np.asarray(self._sum / self._weight[:, None], dtype=np.float32)


def shared_rows(encoded: Encoded, own: Encoded, logits: FloatArray) -> tuple[Encoded, FloatArray]:
    """Return `encoded` with the rows that `own` has too, and their logits (R, C) out of those of `own`.

    Both are the same texts. Where tokenizers differ, a long text may be cut behind another word.
    """
    mine, theirs = _places(encoded), _places(own)
    if np.array_equal(mine, theirs):
        return encoded, logits
    _, rows, at = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
    return encoded.keep(rows), logits[at]


def _places(encoded: Encoded) -> NDArray[np.int64]:
    """Return a number for each row (R,), rising, that is the same wherever text and word are."""
    if encoded.words is None:
        return np.arange(int(encoded.first[-1]), dtype=np.int64)
    return (encoded.texts << 32) + encoded.words
