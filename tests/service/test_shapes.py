import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.shapes import build_grid

bounds = st.tuples(st.integers(1, 512), st.integers(1, 20000), st.integers(3, 512))


def test_the_grid_of_the_defaults():
    grid = build_grid(max_batch_size=16, max_batch_tokens=4096, max_length=128)
    assert grid.rows == (1, 2, 4, 8, 16)
    assert grid.lengths == (16, 24, 32, 48, 64, 96, 128)
    assert len(grid.shapes) == 35


def test_the_largest_of_each_is_the_bound_itself():
    grid = build_grid(max_batch_size=20, max_batch_tokens=4096, max_length=100)
    assert grid.rows[-2:] == (16, 20)
    assert grid.lengths[-2:] == (96, 100)
    assert build_grid(max_batch_size=1, max_batch_tokens=1, max_length=8).shapes == ((1, 8),)


@given(bounds, st.data())
def test_every_batch_that_the_queue_forms_fits_a_shape_of_the_grid(limits, data):
    max_batch_size, max_batch_tokens, max_length = limits
    grid = build_grid(max_batch_size=max_batch_size, max_batch_tokens=max_batch_tokens, max_length=max_length)
    length = data.draw(st.integers(1, max_length))
    rows = data.draw(st.integers(1, max(1, min(max_batch_size, max_batch_tokens // length))))
    shape = grid.fit(rows, length)
    assert shape in grid.shapes
    assert shape[0] >= rows
    assert shape[1] >= length
    assert shape[0] < 2 * rows
    assert shape[1] <= 16 or shape[1] * 2 < length * 3
    smaller = [s for s in grid.shapes if s != shape and rows <= s[0] <= shape[0] and length <= s[1] <= shape[1]]
    assert smaller == []


@pytest.mark.parametrize(("rows", "length"), [(17, 16), (1, 129)])
def test_a_batch_beyond_the_grid_is_an_error_with_both_sizes(rows, length):
    grid = build_grid(max_batch_size=16, max_batch_tokens=4096, max_length=128)
    with pytest.raises(ValueError, match=rf"found a batch of {rows} × {length} tokens, expected at most 16 × 128"):
        grid.fit(rows, length)


def test_filling_leaves_nothing_of_the_batch_before():
    grid = build_grid(max_batch_size=4, max_batch_tokens=4096, max_length=16, pad_id=7)
    host = np.full((4, 16), 99, dtype=np.int64)
    small = np.array([[5, 6, 1], [8, 9, 1]], dtype=np.int64)
    expected = np.full((4, 16), 7, dtype=np.int64)
    expected[:2, :3] = small
    grid.fill(host, "input_ids", small)
    assert host.tolist() == expected.tolist()
    grid.fill(host, "token_type_ids", small)
    assert host.tolist() == np.where(expected == 7, 0, expected).tolist()


def test_a_new_row_attends_to_one_token_and_a_new_column_is_attended_by_none():
    grid = build_grid(max_batch_size=4, max_batch_tokens=4096, max_length=16)
    host = np.full((4, 16), 99, dtype=np.int64)
    grid.fill(host, "attention_mask", np.ones((3, 5), dtype=np.int64))
    assert host.sum(axis=1).tolist() == [5, 5, 5, 1]
    assert host[:, 5:].sum() == 0
