"""Copies of key/value heads: which outputs they are, whole and in parts, dense and packed."""

import numpy as np
import pytest

from jaxllama.kernels.body import UnreadMatrix
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.model.key_heads import copied_heads, copies_of_heads, with_copies
from jaxllama.testing import tiny

SIZE, HEADS, COPIES = 4, 3, 2


def test_each_head_is_copied_beside_itself():
    bias = np.arange(SIZE * HEADS)
    found = copied_heads(bias, SIZE, COPIES)
    expected = [bias[head * SIZE : (head + 1) * SIZE] for head in (0, 0, 1, 1, 2, 2)]
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_a_packed_matrix_is_copied_as_the_dense_one():
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (SIZE * HEADS, 32), np.int8)
    scales, minima = rng.random((2, SIZE * HEADS, 1), np.float32)
    packed = Packed(codes, scales, minima, 8, 32)
    found = copied_heads(packed, SIZE, COPIES)
    np.testing.assert_array_equal(dense_of(found), copied_heads(dense_of(packed), SIZE, COPIES))


@pytest.mark.parametrize("part", [(0, 4), (4, 8), (8, 16), (2, 21), (23, 24)])
def test_a_part_is_read_from_the_heads_that_it_copies(part):
    matrix = np.arange(5 * SIZE * HEADS).reshape(5, -1)
    asked = []

    def read(index):
        asked.append(index)
        return matrix if index is None else matrix[index]

    copied = copied_heads(UnreadMatrix(matrix.shape, read), SIZE, COPIES)
    whole = copied_heads(matrix, SIZE, COPIES)
    assert copied.shape == whole.shape
    np.testing.assert_array_equal(copied.read(None), whole)
    found = copied.read((slice(1, 3), slice(*part)))
    np.testing.assert_array_equal(found, whole[1:3, slice(*part)])
    assert asked[-1][1].stop - asked[-1][1].start <= part[1] - part[0]


def test_heads_are_copied_only_for_more_devices_than_heads():
    model = tiny(heads=8, kv_heads=2)
    assert [copies_of_heads(model, parts) for parts in (1, 2, 4, 8)] == [1, 1, 2, 4]
    assert [copies_of_heads(model, parts) for parts in (3, 6, 16)] == [1, 1, 1]  # refused later
    assert with_copies(model, 2) is model
    assert with_copies(with_copies(model, 8), 8).kv_heads == 8
