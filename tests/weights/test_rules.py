"""Rules: several tensors to one weight, several weights from one tensor, parts, the way back."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from in_memory import MemoryCheckpoint

from jaxllama.errors import BadTensors, BrokenPlugin
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import Leaf
from jaxllama.testing.weights import parts
from jaxllama.weights.base import check_tensors
from jaxllama.weights.layout import TRANSPOSE, TRANSPOSED, PairRope, Shift, Step, UnpairRope
from jaxllama.weights.rules import (
    Concatenate,
    Copies,
    Rule,
    Stack,
    TensorPart,
    expand,
    numbered,
    restore,
)
from jaxllama.weights.stored import (
    Index,
    Shape,
    Stored,
    concatenate,
    part_of,
    shape_of,
    unpacked,
    whole,
)

HEAD, IN, OUT = 8, 64, 48
RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((OUT, IN)).astype(np.float32)  # as in a file: [out, in]


def packed(out: int, inward: int, *, bits: int = 4, order: bool = False) -> Packed:
    """A random packed matrix of groups of 32, with minima."""
    shape = (out, inward // 2 if bits == 4 else inward)
    kind = np.uint8 if bits == 4 else np.int8
    codes = RNG.integers(0, 100, shape, dtype=kind)
    scales, minima = RNG.random((2, out, inward // 32)).astype(np.float16)
    permutation = RNG.permutation(inward).astype(np.int32) if order else None
    return Packed(codes, scales, minima, bits, 32, permutation)


@dataclass(frozen=True)
class Reverse(Step):
    """A plugin's own step: the rows from last to first; which part it needs is left open."""

    def apply(self, stored: Stored) -> Stored:
        return stored[::-1].copy()

    def shape(self, shape: Shape) -> Shape:
        return shape

    def inverse(self) -> Step:
        return self


def halves(axis: int) -> list[np.ndarray]:
    return np.split(MATRIX, 2, axis)


# The tensors of a file, the table, and what our weights must be.
CASES: dict[str, tuple[dict[str, Stored], dict[str, Rule], dict[str, Stored]]] = {
    "shards by output": (
        dict(zip(("a.0", "a.1"), halves(0), strict=True)),
        {"a": Rule(numbered("a.{n}", 2), TRANSPOSED, Concatenate(0))},
        {"a": MATRIX.T},
    ),
    "shards by input": (
        dict(zip(("a.0", "a.1"), halves(1), strict=True)),
        {"a": Rule(numbered("a.{n}", 2), TRANSPOSED, Concatenate(1))},
        {"a": MATRIX.T},
    ),
    "shards of paired heads": (
        dict(zip(("a.0", "a.1"), np.split(PairRope(HEAD).apply(MATRIX), 2), strict=True)),
        {"a": Rule(("a.0", "a.1"), (UnpairRope(HEAD), TRANSPOSE), Concatenate(0))},
        {"a": MATRIX.T},
    ),
    "norms in every shard": (
        {"n.0": MATRIX[0], "n.1": MATRIX[0]},
        {"n": Rule(("n.0", "n.1"), join=Copies())},
        {"n": MATRIX[0]},
    ),
    "norms less one": (
        {"n": MATRIX[0].astype(np.float16)},
        {"n": Rule("n", (Shift(1.0),))},
        {"n": MATRIX[0].astype(np.float16).astype(np.float32) + 1},
    ),
    "fused qkv": (
        {"qkv": MATRIX, "b": MATRIX[:, 0].copy()},
        {
            "q": Rule("qkv", TRANSPOSED, cut=TensorPart(0, 0, 24)),
            "v": Rule("qkv", TRANSPOSED, cut=TensorPart(0, 32, 48)),
            "k": Rule("qkv", (UnpairRope(HEAD), TRANSPOSE), cut=TensorPart(0, 24, 32)),
            "bias": Rule("b"),
        },
        {
            "q": MATRIX[:24].T,
            "k": UnpairRope(HEAD).apply(MATRIX[24:32]).T,
            "v": MATRIX[32:].T,
            "bias": MATRIX[:, 0],
        },
    ),
    "experts": (
        {f"e.{n}": MATRIX + n for n in range(4)},
        {"e": Rule(numbered("e.{n}", 4), TRANSPOSED, Stack())},
        {"e": np.stack([(MATRIX + n).T for n in range(4)])},
    ),
    "fused experts": (
        {"e": np.stack([MATRIX + n for n in range(3)])},
        {
            "gate": Rule("e", TRANSPOSED, cut=TensorPart(1, 0, 24)),
            "up": Rule("e", TRANSPOSED, cut=TensorPart(1, 24, 48)),
        },
        {
            "gate": np.stack([(MATRIX[:24] + n).T for n in range(3)]),
            "up": np.stack([(MATRIX[24:] + n).T for n in range(3)]),
        },
    ),
    "a plugin's step": (
        {"a": MATRIX},
        {"a": Rule("a", (Reverse(), TRANSPOSE, Reverse()))},
        {"a": MATRIX[::-1, ::-1].T},
    ),
}


def leaves_of(weights: dict[str, Stored]) -> dict[str, Leaf]:
    return {path: Leaf(each.shape, (None,) * len(each.shape)) for path, each in weights.items()}


def some_parts(shape: Shape) -> list[Index]:
    """Random parts, and every single row or column at the edges."""
    rng = np.random.default_rng(1)
    ends = [[np.sort(rng.choice(size + 1, 2, replace=False)) for size in shape] for _ in range(20)]
    return [tuple(slice(int(a), int(b)) for a, b in each) for each in ends]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_made_from_the_files_tensors(case: str):
    tensors, table, expected = CASES[case]
    checkpoint = MemoryCheckpoint(tensors, table)
    leaves = leaves_of(expected)
    check_tensors(leaves, checkpoint)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(checkpoint.read(path, leaf), expected[path])


@pytest.mark.parametrize("case", CASES)
def test_any_part_is_the_same_part_of_the_whole(case: str):
    tensors, table, expected = CASES[case]
    checkpoint = MemoryCheckpoint(tensors, table)
    for path, leaf in leaves_of(expected).items():
        for index in some_parts(leaf.shape):
            np.testing.assert_array_equal(
                checkpoint.read(path, leaf, index), expected[path][index], err_msg=str(index)
            )


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_gives_the_files_tensors(case: str):
    tensors, table, expected = CASES[case]
    found = dict(restore(table, expected, expected.__getitem__))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("case", "path", "index", "read"),
    [
        ("shards by output", "a", (slice(0, 64), slice(30, 40)), ["a.1"]),
        ("shards by output", "a", (slice(0, 64), slice(20, 30)), ["a.0", "a.1"]),
        ("shards by input", "a", (slice(0, 32), slice(0, 48)), ["a.0"]),
        ("experts", "e", (slice(2, 3), slice(0, 64), slice(0, 9)), ["e.2"]),
        ("norms in every shard", "n", (slice(0, 64),), ["n.0"]),
    ],
)
def test_only_the_tensors_of_a_part_are_read(case, path, index, read):
    tensors, table, expected = CASES[case]
    checkpoint = MemoryCheckpoint(tensors, table)
    checkpoint.read(path, leaves_of(expected)[path], index)
    assert [name for name, _ in checkpoint.seen] == read


def test_a_part_of_heads_reads_whole_heads():
    tensors, table, expected = CASES["fused qkv"]
    checkpoint = MemoryCheckpoint(tensors, table)
    checkpoint.read("k", leaves_of(expected)["k"], (slice(0, 10), slice(1, 3)))
    assert checkpoint.seen == [("qkv", (slice(24, 32), slice(0, 10)))]


PACKED: dict[str, tuple[list[Packed], Concatenate | Stack]] = {
    "by output": ([packed(16, 64), packed(16, 64)], Concatenate(0)),
    "by input": ([packed(16, 64), packed(16, 64)], Concatenate(1)),
    "experts": ([packed(16, 64), packed(16, 64)], Stack()),
    "eight bits": ([packed(16, 64, bits=8), packed(16, 64, bits=8)], Concatenate(0)),
}


@pytest.mark.parametrize("case", PACKED)
def test_packed_matrices_stay_packed_when_they_are_joined(case: str):
    matrices, join = PACKED[case]
    tensors = dict(zip(("a", "b"), matrices, strict=True))
    table = {"w": Rule(("a", "b"), TRANSPOSED, join)}
    whole_values = join.apply([unpacked(each) for each in matrices]).swapaxes(-1, -2)
    leaf = Leaf(whole_values.shape, (None,) * whole_values.ndim)
    checkpoint = MemoryCheckpoint(tensors, table)
    check_tensors({"w": leaf}, checkpoint)
    found = checkpoint.read("w", leaf)
    assert isinstance(found, Packed) and found.shape == leaf.shape
    np.testing.assert_array_equal(unpacked(found).swapaxes(-1, -2), whole_values)
    outer = [(slice(0, 1),)] if whole_values.ndim == 3 else [()]
    for first, inputs, outputs in itertools.product(outer, ((0, 32), (32, 64)), ((3, 9), (0, 16))):
        index = (*first, slice(*inputs), slice(*outputs))
        part = checkpoint.read("w", leaf, index)
        np.testing.assert_array_equal(unpacked(part).swapaxes(-1, -2), whole_values[index])
    for name, back in restore(table, ["w"], {"w": found}.__getitem__):
        for one, other in zip(parts(back), parts(tensors[name]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_matrices_packed_in_different_ways_become_float32_when_they_are_joined():
    matrices = [packed(16, 64), packed(16, 64, bits=8), packed(8, 64, order=True)]
    expected = np.concatenate([unpacked(each) for each in matrices])
    np.testing.assert_array_equal(concatenate(matrices, 0), expected)


def test_a_stack_of_sorted_matrices_keeps_their_order():
    matrix = packed(16, 64, order=True)
    stacked = Stack().apply([matrix, matrix])
    np.testing.assert_array_equal(unpacked(stacked)[1], unpacked(matrix))
    np.testing.assert_array_equal(
        unpacked(part_of(stacked, (slice(1, 2), slice(0, 4), slice(0, 64))))[0],
        unpacked(matrix)[:4],
    )


@pytest.mark.parametrize(
    ("matrix", "inputs", "words"),
    [
        (packed(8, 64), slice(0, 16), "multiples of 32, which share a scale"),
        (packed(8, 64, order=True), slice(0, 32), "are sorted; read all of them"),
    ],
)
def test_inputs_that_belong_together_are_not_separated(matrix, inputs, words):
    with pytest.raises(ValueError, match=words):
        part_of(matrix, (slice(0, 8), inputs))


def test_all_problems_of_joined_and_cut_tensors_are_listed_at_once():
    tensors = {"a.0": MATRIX[:20], "qkv": MATRIX[:40], "other": MATRIX}
    table = CASES["shards by output"][1] | CASES["fused qkv"][1]
    expected = CASES["shards by output"][2] | CASES["fused qkv"][2]
    with pytest.raises(BadTensors) as caught:
        check_tensors(leaves_of(expected), MemoryCheckpoint(tensors, table))
    words = str(caught.value)
    assert "5 tensors do not fit" in words
    for problem in (
        "a.0 has shape [20, 64], expected [24, 64]",
        "a.1 is missing",
        "qkv has shape [40, 64], expected [48, 64]",
        "b is missing",
        "other is surplus",
    ):
        assert problem in words


def test_cuts_that_do_not_adjoin_are_the_authors_mistake():
    table = {
        "q": Rule("qkv", cut=TensorPart(0, 0, 24)),
        "k": Rule("qkv", cut=TensorPart(0, 25, 49)),
    }
    leaves = {"q": Leaf((24, 64), (None, None)), "k": Leaf((24, 64), (None, None))}
    with pytest.raises(BrokenPlugin, match=r"need axis 0 cut at \[0, 24, 48\]"):
        check_tensors(leaves, MemoryCheckpoint({"qkv": MATRIX}, table))


def test_several_names_without_a_join_are_refused():
    with pytest.raises(ValueError, match="a join for several names"):
        Rule(("a", "b"))
    with pytest.raises(ValueError, match="not both"):
        Rule(("a", "b"), join=Stack(), cut=TensorPart(0, 0, 1))


@pytest.mark.parametrize(
    "index", [(slice(0, 3),), (slice(3, 3), slice(0, 5)), (slice(0, 9, 2),) * 2]
)
def test_an_index_that_is_no_part_is_refused(index):
    checkpoint = MemoryCheckpoint({"a": MATRIX}, {"a": Rule("a")})
    with pytest.raises(ValueError, match="is no part of"):
        checkpoint.read("a", Leaf((OUT, IN), (None, None)), index)


def test_a_table_is_expanded_for_every_layer():
    table = {"b.{i}.w": Rule(numbered("l.{i}.{n}", 2), TRANSPOSED, Concatenate(1)), "n": Rule("m")}
    assert expand(table, 2) == {
        "b.0.w": Rule(("l.0.0", "l.0.1"), TRANSPOSED, Concatenate(1)),
        "b.1.w": Rule(("l.1.0", "l.1.1"), TRANSPOSED, Concatenate(1)),
        "n": Rule("m"),
    }


def test_shape_of_a_packed_matrix_is_that_of_the_file():
    assert shape_of(packed(16, 64)) == (16, 64)
    assert whole((2, 3)) == (slice(0, 2), slice(0, 3))
