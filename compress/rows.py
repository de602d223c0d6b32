"""Rows: the decisions a model makes about texts, whatever the task.

A row is a text (single-label, multi-label, pairs) or the first token of a word (token classification). Losses, metrics
and calibration see rows only, so they are the same for every task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.tokenization import Encoding

UNLABELED = -100
"""Target of a row without a label; torch's cross-entropy skips it by the same number."""

IdArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """N tokenised texts with their R rows."""

    encodings: Sequence[Encoding]
    targets: IdArray
    """(R,) label ids, or (R, C) zeros and ones (multi-label); UNLABELED where there is none."""
    first: IdArray
    """(N + 1,): text i has the rows first[i] to first[i + 1]."""
    positions: IdArray | None = None
    """(R,) the token a row is read at; None when a model gives one row a text."""
    words: IdArray | None = None
    """(R,) which word of its text a row is; a word that was cut has no row."""

    @property
    def texts(self) -> IdArray:
        """(R,) the text that each row is of."""
        return np.repeat(np.arange(len(self.first) - 1, dtype=np.int64), np.diff(self.first))

    def rows_of(self, indices: Sequence[int]) -> IdArray:
        """Return the rows of these texts, text after text."""
        if self.positions is None:
            return np.asarray(indices, dtype=np.int64)
        return np.concatenate([np.arange(self.first[i], self.first[i + 1]) for i in indices], dtype=np.int64)

    def keep(self, rows: IdArray) -> "Encoded":
        """Return the same texts with only these of their rows, which rise; rows must be words."""
        assert self.positions is not None  # noqa: S101
        assert self.words is not None  # noqa: S101
        first = np.searchsorted(rows, self.first)
        return Encoded(self.encodings, self.targets[rows], first, self.positions[rows], self.words[rows])

    def texts_and_positions(self, indices: Sequence[int]) -> tuple[IdArray, IdArray] | None:
        """Return where in a batch of these texts their rows are, or None when the outputs are the rows."""
        if self.positions is None:
            return None
        counts = [int(self.first[i + 1] - self.first[i]) for i in indices]
        return np.repeat(np.arange(len(indices)), counts), self.positions[self.rows_of(indices)]


def one_row_each(encodings: Sequence[Encoding], targets: IdArray) -> Encoded:
    """Return texts with one row each."""
    return Encoded(encodings, targets, np.arange(len(encodings) + 1, dtype=np.int64))


def gather(outputs: Any, where: tuple[Any, Any] | None) -> Any:
    """Return the rows (R, C) of a batch's outputs (B, C) or (B, T, C); arrays and tensors alike."""
    return outputs if where is None else outputs[where[0], where[1]]
