"""Rows: the decisions of texts, wherever in a batch they stand."""

import numpy as np
import pytest
import torch

from compress.rows import Encoded, gather, one_row_each
from service.engine.tokenization import Encoding


def ids(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# texts of 2, 0 and 3 rows
TAGGED = Encoded([Encoding([0] * n, [0] * n, False) for n in (4, 2, 6)], ids([5, 6, 7, 8, 9]), ids([0, 2, 2, 5]))
WITH_POSITIONS = Encoded(TAGGED.encodings, TAGGED.targets, TAGGED.first, ids([1, 2, 1, 3, 4]), ids([0, 1, 0, 1, 2]))


def test_one_row_a_text() -> None:
    encoded = one_row_each(TAGGED.encodings, ids([1, 0, 1]))
    assert encoded.first.tolist() == [0, 1, 2, 3]
    assert encoded.rows_of([2, 0]).tolist() == [2, 0]
    assert encoded.texts_and_positions([2, 0]) is None


@pytest.mark.parametrize(
    ("texts", "rows", "places"),
    [
        ([2, 0], [2, 3, 4, 0, 1], ([0, 0, 0, 1, 1], [1, 3, 4, 1, 2])),
        ([1, 2], [2, 3, 4], ([1, 1, 1], [1, 3, 4])),
        ([1], [], ([], [])),
    ],
)
def test_rows_of_tokens(texts: list[int], rows: list[int], places: tuple[list[int], list[int]]) -> None:
    assert WITH_POSITIONS.rows_of(texts).tolist() == rows
    found = WITH_POSITIONS.texts_and_positions(texts)
    assert found is not None
    assert tuple(array.tolist() for array in found) == places
    assert all(array.dtype == np.int64 for array in found)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_gathering_takes_the_outputs_of_those_places(kind: object) -> None:
    outputs = kind(np.arange(2 * 6 * 3, dtype=np.float32).reshape(2, 6, 3))
    where = WITH_POSITIONS.texts_and_positions([2, 0])
    found = gather(outputs, tuple(kind(array) for array in where))
    expected = [outputs[b, t].tolist() for b, t in zip(*where, strict=True)]
    assert found.tolist() == expected
    assert gather(outputs, None) is outputs
