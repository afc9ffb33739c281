"""Tiling: converts canonical matrices to tiles for the CPU kernels while a model is loaded.

Called by `layout.py` with dense matrices [in, out] or packed ones stored by output. Weights keep
their values: a matrix that cannot be tiled exactly is refused, and `can_tile` predicts that. Knows
no model and no file format.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from jaxllama.kernels.cpu import library
from jaxllama.kernels.cpu.tiled import BLOCK, EIGHT, HALF, SIXTEEN, TILE, Kind, Tiled

ALIGNED = 64  # bytes
MIDDLE = 8  # the code that means 0 in symmetric four-bit matrices
BELOW = {5: 16, 6: 32}  # by bits: without minima, codes are signed and start this far below 0
PACKED: dict[int, Kind] = {4: "q4", 5: "q5", 6: "q6", 8: "q8"}
NUMBERS: dict[Kind, int] = {"q4": 512, "q5": 640, "q6": 768}  # stored per block; other kinds 1,024
TYPES: dict[str, Any] = {"bf16": np.uint16, "f16": np.uint16, "f32": np.float32}
DENSE: dict[str, Kind] = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


@runtime_checkable
class PackedMatrix(Protocol):
    """A packed matrix, stored by output: weight = scale * code + minimum."""

    @property
    def codes(self) -> Any: ...  # noqa: D102
    @property
    def scales(self) -> Any: ...  # noqa: D102
    @property
    def minima(self) -> Any | None: ...  # noqa: D102
    @property
    def bits(self) -> Literal[4, 5, 6, 8]: ...  # noqa: D102
    @property
    def group(self) -> int: ...  # noqa: D102


def tile(
    *matrices: PackedMatrix | np.ndarray,
    biases: Sequence[np.ndarray | None] = (),
    order: np.ndarray | None = None,
) -> Tiled:
    """Tile one matrix, or several side by side, for one call of a C++ kernel.

    A tile holds the weights of 32 outputs. Dense matrices are [in, out] and may be views (a
    transposed embedding); their type is kept. `biases` has one entry per matrix, or none at all.
    order[r] is the index of the input that row r of the matrices multiplies; None: input r. The
    result holds NumPy arrays.
    """
    offsets = np.cumsum([0, *(count_outputs(each) for each in matrices)])
    places = [OutputPlace(int(offset), -1) for offset in offsets[:-1]]
    return tile_matrices(matrices, places, int(offsets[-1]), biases, order)


def tile_pair(
    gate: PackedMatrix | np.ndarray,
    up: PackedMatrix | np.ndarray,
    *,
    biases: Sequence[np.ndarray | None] = (),
    order: np.ndarray | None = None,
) -> Tiled:
    """Tile gate and up together, for a fused SwiGLU kernel: every tile has 16 outputs of each.

    `biases` has one entry for each of the two, or none at all. order[r] is the index of the input
    that row r of the matrices multiplies; None: input r.
    """
    if count_outputs(gate) != count_outputs(up):
        raise ValueError(f"gate has {count_outputs(gate)} outputs and up has {count_outputs(up)}")
    return tile_matrices(
        (gate, up), [OutputPlace(0, 0), OutputPlace(0, 1)], count_outputs(gate), biases, order
    )


def can_tile(matrix: PackedMatrix) -> bool:
    """Say whether a packed matrix can be stored in tiles of 32 outputs without changing its values.

    The number of inputs must be a multiple of 32, and so must the number of inputs that share a
    scale. With six-bit codes, 16 inputs must share a scale instead, and every scale must be exactly
    a float16 times a signed byte.
    """
    least, width = least_group(matrix.bits), matrix.codes.shape[1] * codes_per_byte(matrix.bits)
    if matrix.group % least or width % BLOCK:
        return False
    return matrix.bits != 6 or split_into_signed_steps(tiling_input(matrix)) is not None  # noqa: PLR2004


@dataclasses.dataclass(frozen=True)
class OutputPlace:
    """The target of one matrix's outputs: after other outputs, or one half of every tile."""

    offset: int
    turn: int  # 0 or 1: the first or second half of every tile; -1: whole tiles

    def of(self, outputs: int) -> np.ndarray:
        """Return the index of each of this matrix's outputs among the outputs of all tiles.

        `outputs` is the number of the matrix's outputs.
        """
        each = np.arange(outputs)
        if self.turn < 0:
            return self.offset + each
        return each // HALF * TILE + self.turn * HALF + each % HALF


@dataclasses.dataclass(frozen=True)
class TilingInput:
    """A packed matrix, with scales and minima in the form that all matrices of its group have."""

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray | None
    bits: int
    group: int
    zero: int
    shift: int  # added to signed codes of five and six bits, so that they start at 0


def count_outputs(matrix: PackedMatrix | np.ndarray) -> int:
    """Return the number of outputs of a matrix, packed or dense."""
    return matrix.shape[1] if isinstance(matrix, np.ndarray) else matrix.codes.shape[0]


def tile_matrices(
    matrices: Sequence[PackedMatrix | np.ndarray],
    places: Sequence[OutputPlace],
    outward: int,
    biases: Sequence[np.ndarray | None],
    order: np.ndarray | None,
) -> Tiled:
    """Tile matrices, all packed or all dense, with their biases: a tile has 32 of their outputs.

    `places` says for each matrix where its outputs go; `outward` is the number of all outputs (for
    gate and up in shared tiles, of one of them); `biases` has one entry per matrix, or none at all.
    order[r] is the index of the input that row r of the matrices multiplies; None: input r.
    """
    paired = places[0].turn >= 0
    count = -(-outward // (HALF if paired else TILE))
    dense = [each for each in matrices if isinstance(each, np.ndarray)]
    if not dense:
        sources = unify_inputs([tiling_input(each) for each in matrices])
        tiled = tile_packed(sources, places, count)
    elif len(dense) == len(matrices):
        tiled = tile_dense(dense, places, count)
    else:
        raise ValueError("packed and dense matrices cannot share tiles; tile them apart")
    return dataclasses.replace(
        tiled,
        bias=tile_biases(biases, matrices, places, count),
        order=None if order is None else validate_order(order, tiled.shape[0]),
        spare_out=count * (HALF if paired else TILE) - outward,
        paired=paired,
    )


def tiling_input(matrix: Any) -> TilingInput:
    """Check a packed matrix; return it with the code that means 0 and the shift of its codes.

    The shift is added to signed codes of five and six bits, so that they start at 0. Raises
    ValueError if the matrix cannot be stored in tiles of 32 outputs.
    """
    codes, scales = np.ascontiguousarray(matrix.codes), np.asarray(matrix.scales)
    minima = None if matrix.minima is None else np.asarray(matrix.minima)
    width = codes.shape[1] * codes_per_byte(matrix.bits)
    if matrix.group % least_group(matrix.bits) or width % BLOCK:
        raise ValueError(
            f"groups of {matrix.group} in {width} inputs; the kernels take whole blocks of {BLOCK}"
        )
    expected = (codes.shape[0], -(-width // matrix.group))
    if scales.shape != expected or (minima is not None and minima.shape != expected):
        raise ValueError(f"scales have shape {scales.shape}; expected {expected}")
    shift = zero = BELOW.get(matrix.bits, 0) if minima is None else 0
    if matrix.bits == 4 and minima is not None and is_symmetric(scales, minima):  # noqa: PLR2004
        minima, zero = None, MIDDLE
    return TilingInput(codes.view(np.uint8), scales, minima, matrix.bits, matrix.group, zero, shift)


def codes_per_byte(bits: int) -> int:
    """Return how many codes of `bits` bits a byte of a packed matrix holds."""
    return 2 if bits == 4 else 1  # noqa: PLR2004


def least_group(bits: int) -> int:
    """Return the least size of a group; the size of every group must be a multiple of it.

    A group is the inputs that share a scale; `bits` is the size of a code.
    """
    return SIXTEEN if bits == 6 else BLOCK  # noqa: PLR2004


def is_symmetric(scales: np.ndarray, minima: np.ndarray) -> bool:
    """Say whether every minimum in `minima` is -8 times its scale.

    Checks the first output alone first, to stop early.
    """
    return all(
        bool(np.all(minima[part].astype(np.float32) == scales[part].astype(np.float32) * -MIDDLE))
        for part in (slice(0, 1), slice(1, None))
    )


def unify_inputs(sources: list[TilingInput]) -> list[TilingInput]:
    """Convert packed matrices so that they can share tiles; their values do not change.

    Then the same code means 0 in all, their scales have one dtype, and all or none have minima.
    Raises ValueError if they differ in bits, in the number of inputs or in the inputs per scale.
    """
    first = sources[0]
    for each in sources:
        if (each.bits, each.group, each.codes.shape[1]) != (
            first.bits,
            first.group,
            first.codes.shape[1],
        ):
            raise ValueError(
                f"matrices of {first.bits} and {each.bits} bits, groups of {first.group} and "
                f"{each.group} and rows of {first.codes.shape[1]} and {each.codes.shape[1]} bytes "
                f"cannot share tiles; tile them apart"
            )
    if any(
        each.zero != first.zero or (each.minima is None) != (first.minima is None)
        for each in sources
    ):
        sources = [with_minima(each) for each in sources]
    parts = [part for each in sources for part in (each.scales, each.minima) if part is not None]
    narrow = all(part.dtype == np.float16 for part in parts)
    kept = np.float16 if narrow else np.float32
    return [
        dataclasses.replace(
            each,
            scales=np.ascontiguousarray(each.scales, kept),
            minima=None if each.minima is None else np.ascontiguousarray(each.minima, kept),
        )
        for each in sources
    ]


def with_minima(source: TilingInput) -> TilingInput:
    """Return the matrix `source` with explicit minima, so that the code 0 means the minimum."""
    if source.minima is not None:
        return source
    minima = source.scales.astype(np.float32) * -source.zero
    narrow = minima.astype(np.float16)
    exact = source.scales.dtype == np.float16 and bool(np.all(narrow == minima))
    return dataclasses.replace(source, minima=narrow if exact else minima, zero=0)


def tile_packed(sources: list[TilingInput], places: Sequence[OutputPlace], count: int) -> Tiled:
    """Tile packed matrices into `count` tiles: codes with the C++ library, scales with NumPy.

    `sources` are the matrices, made alike by `unify_inputs`. A tile holds the weights of 32
    outputs. `places` says for each matrix where its outputs go.
    """
    first = sources[0]
    blocks = first.codes.shape[1] * (2 if first.bits == 4 else 1) // BLOCK  # noqa: PLR2004
    kind = PACKED[first.bits]
    codes = empty_codes((count, blocks, NUMBERS.get(kind, 1024)), np.uint8)
    for source, place in zip(sources, places, strict=True):
        library.loaded().jaxllama_tile_packed(
            source.bits, source.shift, pointer(source.codes),
            *longs(len(source.codes), blocks, place.offset), place.turn, pointer(codes),
        )  # fmt: skip
    if kind == "q6":
        return tile_halves(sources, places, codes)
    stepped = [split_into_steps(each) for each in sources]
    steps = None
    if all(each is not None for each in stepped):
        units = [each for each in stepped if each is not None]
        scales = tile_factors([each[0] for each in units], places, count)
        steps = tile_factors([each[1] for each in units], places, count)
    else:
        scales = tile_factors([scales_and_minima(each) for each in sources], places, count)
    return Tiled(
        codes=codes, scales=half_as_bits(scales), steps=steps, bias=None, order=None, kind=kind,
        group=first.group, zero=first.zero, spare_in=0, spare_out=0, paired=False,
    )  # fmt: skip


def tile_halves(
    sources: list[TilingInput], places: Sequence[OutputPlace], codes: np.ndarray
) -> Tiled:
    """Build the tiles of six-bit matrices from their tiled codes and from their scales.

    A scale is stored as unit * step: 16 inputs share a step (a signed byte), 256 inputs a unit.
    `sources` has the scales of each matrix, `places` says where its outputs go, `codes` are the
    tiled codes of all. Raises ValueError if a scale is not exactly such a product.
    """
    count, blocks = codes.shape[:2]
    found = [split_into_signed_steps(each) for each in sources]
    factors = [each for each in found if each is not None]
    if len(factors) < len(found):
        raise ValueError("scales of six-bit codes must be signed bytes times a float16")
    units = tile_factors([[units] for units, _ in factors], places, count)
    steps = tile_factors([[steps] for _, steps in factors], places, count)
    return Tiled(
        codes=codes, scales=half_as_bits(units), steps=steps.reshape(count, blocks, 2, TILE),
        bias=None, order=None, kind="q6",
        group=BLOCK, zero=sources[0].zero, spare_in=0, spare_out=0, paired=False,
    )  # fmt: skip


def empty_codes(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return zeros that start at a multiple of 64 bytes, so that JAX need not copy the array."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)


def scales_and_minima(source: TilingInput) -> list[np.ndarray]:
    """Return a list of the scales of the matrix `source` and, if it has minima, the minima."""
    return [source.scales] if source.minima is None else [source.scales, source.minima]


def split_into_steps(source: TilingInput) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """Factor scales and minima of K-quants into units [out, groups/8] and steps [out, groups].

    Returns (units, steps), each with one array for the scales and one for the minima; None if the
    products would not be exact.
    """
    minima = source.minima
    rows, groups = source.scales.shape
    is_k_quant = source.bits in (4, 5) and source.group == BLOCK and groups % EIGHT == 0
    if not is_k_quant or minima is None or source.scales.dtype != np.float32:
        return None
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for part in (source.scales, minima):
        units = np.empty((rows, groups // EIGHT), np.float16)
        steps = np.empty((rows, groups), np.uint8)
        if not find_steps(part, units, steps, is_signed=False):
            return None
        found.append((units, steps))
    return [units for units, _ in found], [steps for _, steps in found]


def split_into_signed_steps(source: TilingInput) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor scales into float16 units [out, groups/16] and signed steps [out, groups].

    Each scale belongs to sixteen inputs. Returns None if the products would not be exact.
    """
    rows, groups = source.scales.shape
    if source.group != SIXTEEN or source.minima is not None or groups % (2 * EIGHT):
        return None
    units = np.empty((rows, groups // (2 * EIGHT)), np.float16)
    steps = np.empty((rows, groups), np.uint8)
    exact = find_steps(source.scales.astype(np.float32), units, steps, is_signed=True)
    return (units, steps) if exact else None


def find_steps(
    numbers: np.ndarray, units: np.ndarray, steps: np.ndarray, *, is_signed: bool
) -> bool:
    """Factor each row of `numbers` into float16 units and small whole steps; False if impossible.

    Fills `units` and `steps`, so that unit * step is exactly the number. Eight consecutive numbers
    share a unit, and a step is 0 or more; with `is_signed`, sixteen share it, and a step is a
    signed byte.
    """
    return bool(
        library.loaded().jaxllama_find_steps(
            int(is_signed), pointer(numbers), *longs(*units.shape), pointer(units), pointer(steps)
        )
    )


def tile_factors(
    parts: Sequence[Sequence[np.ndarray]], places: Sequence[OutputPlace], count: int
) -> np.ndarray:
    """Tile scales or steps [out, groups] into [tiles, groups, arrays per matrix, 32].

    `parts` has the arrays of each matrix, `places` says for each matrix where its outputs go,
    `count` is the number of tiles.
    """
    sample = parts[0][0]
    tiled = np.zeros((count * TILE, len(parts[0]), sample.shape[1]), sample.dtype)
    for matrix, place in zip(parts, places, strict=True):
        for which, part in enumerate(matrix):
            tiled[place.of(len(part)), which] = part
    shaped = tiled.reshape(count, TILE, len(parts[0]), sample.shape[1])
    return np.ascontiguousarray(shaped.transpose(0, 3, 2, 1))


def tile_dense(matrices: list[np.ndarray], places: Sequence[OutputPlace], count: int) -> Tiled:
    """Tile dense matrices [in, out] of one dtype into `count` tiles with the C++ library.

    A tile holds the weights of 32 outputs, or of 16 of each of two matrices. `places` says for each
    matrix where its outputs go. Raises ValueError if dtypes or widths differ.
    """
    first = matrices[0]
    kind = DENSE.get(first.dtype.name)
    if kind is None:
        raise ValueError(f"dense weights are {first.dtype}; the kernels take {', '.join(DENSE)}")
    if any(each.dtype != first.dtype or len(each) != len(first) for each in matrices):
        raise ValueError("matrices of different types or widths cannot share tiles")
    width, size = len(first), first.dtype.itemsize
    blocks = -(-width // BLOCK)
    codes = empty_codes((count, blocks, NUMBERS.get(kind, 1024)), TYPES[kind])
    for matrix, place in zip(matrices, places, strict=True):
        per_input, per_output = matrix.strides
        library.loaded().jaxllama_tile_dense(
            size, int(kind == "bf16"), pointer(matrix),
            *longs(matrix.shape[1], width, per_output, per_input, place.offset), place.turn,
            pointer(codes),
        )  # fmt: skip
    return Tiled(
        codes=codes, scales=None, steps=None, bias=None, order=None, kind=kind, group=BLOCK,
        zero=0, spare_in=blocks * BLOCK - width, spare_out=0, paired=False,
    )  # fmt: skip


def tile_biases(
    biases: Sequence[np.ndarray | None],
    matrices: Sequence[PackedMatrix | np.ndarray],
    places: Sequence[OutputPlace],
    count: int,
) -> np.ndarray | None:
    """Return biases as [tiles, 32], zero for a matrix without one; None if no matrix has one.

    `biases` has one entry per matrix, `places` says where each matrix's outputs go, and `count` is
    the number of tiles.
    """
    if all(each is None for each in biases):
        return None
    tiled = np.zeros(count * TILE, np.float32)
    for bias, matrix, place in zip(biases, matrices, places, strict=True):
        outputs = count_outputs(matrix)
        if bias is not None:
            if bias.shape != (outputs,):
                raise ValueError(f"the bias has shape {bias.shape}; expected {(outputs,)}")
            tiled[place.of(outputs)] = bias
    return tiled.reshape(count, TILE)


def validate_order(order: np.ndarray, width: int) -> np.ndarray:
    """Return `order` as int32; raise ValueError unless it is a permutation of 0..width - 1.

    order[r] is the index of the input that row r of a matrix with `width` inputs multiplies.
    """
    if order.shape != (width,) or not np.array_equal(np.sort(order), np.arange(width)):
        raise ValueError(f"the order must name each of {width} inputs once")
    return np.ascontiguousarray(order, np.int32)


def pointer(array: np.ndarray) -> Any:
    """Return the address of an array's first element as ctypes passes it."""
    return array.ctypes.data_as(library.POINTER)


def longs(*numbers: int) -> list[Any]:
    """Convert numbers to int64 of C for ctypes, which would pass int."""
    return [library.LONG(number) for number in numbers]


def half_as_bits(array: np.ndarray) -> np.ndarray:
    """Return a float16 array as UInt16 bits, because XLA:CPU would widen it; others unchanged."""
    return array.view(np.uint16) if array.dtype == np.float16 else array
