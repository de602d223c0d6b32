"""The finite grid of input shapes that a GPU runs: each is prepared once at load, and every batch is padded up to one.

On CPU nothing is padded to a grid: there it costs time and gains nothing (docs/experiments.md).
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHORTEST_TOKENS = 16


@dataclass(frozen=True)
class ShapeGrid:
    """Numbers of rows and lengths in tokens, both ascending, and the shapes (rows, length) that batches can need.

    `pad_id` fills new columns of `input_ids`.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    pad_id: int = 0

    def fit(self, rows: int, length: int) -> tuple[int, int]:
        """Return the smallest shape that holds (rows, length); raises ValueError when none does."""
        if rows > self.rows[-1] or length > self.lengths[-1]:
            raise ValueError(
                f"found a batch of {rows} × {length} tokens, expected at most {self.rows[-1]} × {self.lengths[-1]}"
            )
        return self.rows[bisect.bisect_left(self.rows, rows)], self.lengths[bisect.bisect_left(self.lengths, length)]

    def fill(self, host: NDArray[np.int64], name: str, array: NDArray[np.int64]) -> None:
        """Write `array` (B, T) into the top left of `host` (rows, length), and what means nothing into the rest.

        A new row attends to its first token: a row that attends to none divides by zero in some attention kernels.
        """
        rows, length = array.shape
        host[:, length:] = self.pad_id if name == "input_ids" else 0
        host[rows:, :length] = self.pad_id if name == "input_ids" else 0
        host[:rows, :length] = array
        if name == "attention_mask":
            host[rows:, 0] = 1


def build_grid(*, max_batch_size: int, max_batch_tokens: int, max_length: int, pad_id: int = 0) -> ShapeGrid:
    """Return the grid for batches of at most `max_batch_size` rows of at most `max_length` tokens each.

    Rows are powers of two; lengths are 16, 24, 32, 48, 64, 96, …, so that beyond 16 tokens less than a third of a
    length is such padding; the largest of each is the bound itself. `max_batch_tokens` bounds rows × length before
    rounding up (one row always goes), as the queue does; shapes that no such batch needs are left out.
    """
    rows = _up_to(max_batch_size, iter(1 << power for power in range(64)))
    lengths = _up_to(max_length, _lengths())
    shapes = []
    for smaller_rows, of_rows in zip((0, *rows), rows, strict=False):
        for smaller_length, length in zip((0, *lengths), lengths, strict=False):
            if of_rows == 1 or (smaller_rows + 1) * (smaller_length + 1) <= max_batch_tokens:
                shapes.append((of_rows, length))
    return ShapeGrid(rows, lengths, tuple(shapes), pad_id)


def _lengths() -> Iterator[int]:
    length = _SHORTEST_TOKENS
    while True:
        yield length
        yield length * 3 // 2
        length *= 2


def _up_to(bound: int, values: Iterator[int]) -> tuple[int, ...]:
    """Return the values below `bound`, and `bound`."""
    found = []
    for value in values:
        if value >= bound:
            break
        found.append(value)
    return (*found, bound)
