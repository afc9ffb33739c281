"""Products with packed matrices on a TPU: every packed byte is read once for all rows of a call.

A block of a matrix is unpacked in VMEM to bfloat16 and multiplied by all rows, so a prompt unpacks
a matrix once per chunk. The inputs are added up in the same steps whatever the number of rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllama.kernels.packed import holds_float8
from jaxllama.kernels.platform import interpreted
from jaxllama.kernels.tpu.grouped import FOUR_BITS, LANES, PER_WORD, WORDS, GroupedMatrix, unit_of
from jaxllama.shapes import Array, Float, Int32

ROWS = 16  # a tile of bfloat16 rows; fewer are padded
INPUTS = 2048  # most inputs of one block
OUTPUTS = 1024  # most outputs of one block; half as many where many rows share VMEM
MANY_ROWS = 256
SUBLANES = {2: 16, 4: 8}  # rows of a tile of scales, by the bytes of one
EXPONENT = 112 << 23  # between the exponents of float16 and float32


def multiply(x: Float[Array, "L I"], matrix: GroupedMatrix) -> Float[Array, "L O"]:
    """Return x · matrix with float32 sums; inputs and weights are rounded to bfloat16."""
    rows = x.shape[0]
    inputs, outputs = matrix.inputs, matrix.codes.shape[1]
    unit = unit_of(inputs)
    count = -(-rows // ROWS) * ROWS
    x = x if matrix.order is None else x[:, matrix.order]
    x = jnp.pad(x.astype(jnp.bfloat16), ((0, count - rows), (0, inputs - x.shape[1])))
    by_unit = x.reshape(count, inputs // unit, unit).swapaxes(0, 1)
    units = units_of(matrix, inputs // unit, unit)
    width = outputs_of(outputs, OUTPUTS // 2 if count > MANY_ROWS else OUTPUTS)
    arrays = [each for each in (matrix.scales, matrix.minima) if each is not None]
    groups = max(units * unit // matrix.group, 1)
    share = max(matrix.group // (units * unit), 1)  # blocks that have one scale in common
    stored = units * unit // (PER_WORD if matrix.bits == FOUR_BITS else 1)
    y: Array = pl.pallas_call(
        partial(multiply_kernel, matrix.bits, matrix.group, matrix.zero),
        grid=(outputs // width, inputs // (units * unit)),
        in_specs=[
            pl.BlockSpec((units, count, unit), lambda _, k: (k, 0, 0)),
            pl.BlockSpec((stored, width), lambda n, k: (k, n)),
            *[pl.BlockSpec((groups, width), lambda n, k: (k // share, n)) for _ in arrays],
        ],
        out_specs=pl.BlockSpec((count, width), lambda n, _: (0, n)),
        out_shape=jax.ShapeDtypeStruct((count, outputs), jnp.float32),
        scratch_shapes=[pltpu.VMEM((groups, width), jnp.float32) for _ in arrays],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=64 << 20
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * count * inputs * outputs,
            transcendentals=0,
            bytes_accessed=sum(
                each.size * each.dtype.itemsize for each in (x, matrix.codes, *arrays)
            )
            + 4 * count * outputs,
        ),
        interpret=interpreted(),
        name="grouped_matmul",
    )(by_unit, matrix.codes, *arrays)
    return y[:rows, : matrix.outputs]


def units_of(matrix: GroupedMatrix, count: int, unit: int) -> int:
    """Choose how many units of inputs one block of the kernel has.

    A unit is the `unit` inputs that the kernel unpacks at a time; the matrix has `count` of them.
    The result is the largest divisor of `count` that keeps the scales in whole tiles and has at
    most 2048 inputs, if possible.
    """
    tile = SUBLANES[matrix.scales.dtype.itemsize]

    def fits(units: int) -> bool:
        return units == count or (units * unit) % (matrix.group * tile) == 0

    choices = [units for units in range(1, count + 1) if count % units == 0 and fits(units)]
    return max((each for each in choices if each * unit <= INPUTS), default=choices[0])


def outputs_of(outputs: int, most: int) -> int:
    """Return the largest divisor of `outputs` that is at most `most` and a multiple of LANES.

    `most` is a multiple of LANES.
    """
    return next(each for each in range(most, 0, -LANES) if outputs % each == 0)


def multiply_kernel(bits: int, group: int, zero: int, *refs: Any) -> None:
    """Unpack one block of the matrix, multiply all rows by it, add to the results (Pallas).

    `bits` is the size of a code, `group` inputs share a scale, `zero` is the code that means 0.
    `refs` are the rows x, the codes, the scales and any minima, the output, then scratch for scales
    and minima as float32.
    """
    x, codes, *rest = refs
    arrays = (len(rest) - 1) // 2
    stored, out, floats = rest[:arrays], rest[arrays], rest[arrays + 1 :]
    units, _, unit = x.shape
    for source, target in zip(stored, floats, strict=True):
        target[...] = as_floats(source[...])

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        out[...] = jnp.zeros(out.shape, out.dtype)

    def add_unit(index: Array, _: None) -> None:
        weights = unpacked(codes, index, unit, bits, zero)
        weights = weights * spread(floats[0], index, unit, group)
        if len(floats) > 1:
            weights = weights + spread(floats[1], index, unit, group)
        out[...] += jnp.dot(
            x[index], weights.astype(jnp.bfloat16), preferred_element_type=jnp.float32
        )

    lax.fori_loop(0, units, add_unit, None)


def unpacked(codes: Any, index: Any, unit: int, bits: int, zero: int) -> Array:
    """Return the codes of unit `index` as float32, minus `zero`: [unit, outputs].

    A unit is `unit` inputs. `codes` holds the packed codes of a block, [in, out], of `bits` bits
    each; `zero` is the code that means 0.
    """
    if bits != FOUR_BITS:
        at = pl.multiple_of(index * unit, unit)
        if holds_float8(codes):
            return codes[pl.ds(at, unit), :].astype(jnp.float32)
        return (codes[pl.ds(at, unit), :].astype(jnp.int32) - zero).astype(jnp.float32)
    rows = unit // PER_WORD
    words = codes[pl.ds(pl.multiple_of(index * rows, rows), rows), :]
    by_tile = words.reshape(unit // WORDS, WORDS // PER_WORD, words.shape[1])
    places = [(by_tile >> (4 * place)) & 15 for place in range(PER_WORD)]
    joined = jnp.stack(places, axis=1).reshape(unit, words.shape[1])
    return (joined - zero).astype(jnp.float32)


def spread(scales: Any, index: Any, unit: int, group: int) -> Array:
    """Return the scale of each input in unit `index`: [unit, outputs].

    `scales` has one row for every `group` inputs; a unit has `unit` inputs.
    """
    width = scales.shape[1]
    if group >= unit:
        one = scales[pl.ds(index // (group // unit), 1), :]
        return jnp.broadcast_to(one, (unit, width))
    groups = unit // group
    rows = [scales[pl.ds(index * groups + each, 1), :] for each in range(groups)]
    return jnp.concatenate([jnp.broadcast_to(row, (group, width)) for row in rows], axis=0)


def as_floats(scales: Array) -> Float[Array, "..."]:
    """Return scales as float32; UInt16 holds the bits of float16."""
    if scales.dtype != jnp.uint16:
        return scales
    bits = scales.astype(jnp.int32)
    magnitude = bits & 0x7FFF
    usual = lax.bitcast_convert_type((magnitude << 13) + EXPONENT, jnp.float32)
    tiny = magnitude.astype(jnp.float32) * 2.0**-24  # below float16's smallest exponent
    value = jnp.where(magnitude < 0x400, tiny, usual)  # noqa: PLR2004
    return jnp.where(bits > 0x7FFF, -value, value)  # noqa: PLR2004


def take(matrix: GroupedMatrix, tokens: Int32[Array, " L"]) -> Float[Array, "L I"]:
    """Return the embeddings of `tokens` from a packed matrix [width, vocab], not rounded.

    A row has the width of the stored matrix, padding included.
    """
    inputs = matrix.inputs
    unit = unit_of(inputs)
    arrays = [each for each in (matrix.codes, matrix.scales, matrix.minima) if each is not None]
    specs = [
        pl.BlockSpec((each.shape[0], LANES), lambda row, tokens: (0, tokens[row] // LANES))
        for each in arrays
    ]
    scratch = [pltpu.VMEM((each.shape[0], LANES), jnp.float32) for each in arrays[1:]]
    rows: Array = pl.pallas_call(
        partial(take_kernel, matrix.bits, matrix.group, matrix.zero, unit),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(tokens.shape[0],),
            in_specs=specs,
            out_specs=pl.BlockSpec((1, 1, inputs), lambda row, _: (row, 0, 0)),
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((tokens.shape[0], 1, inputs), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=2 * len(tokens) * inputs * LANES,
            transcendentals=0,
            bytes_accessed=len(tokens)
            * (4 * inputs + LANES * sum(each.shape[0] * each.dtype.itemsize for each in arrays)),
        ),
        interpret=interpreted(),
        name="grouped_take",
    )(tokens, *arrays)
    return rows[:, 0]


def take_kernel(bits: int, group: int, zero: int, unit: int, *refs: Any) -> None:
    """Unpack one output, the embedding of a token, from a block of outputs (Pallas).

    `bits` is the size of a code, `group` inputs share a scale, `zero` is the code that means 0,
    `unit` inputs are unpacked at a time. `refs` are the tokens, the codes, the scales and any
    minima, the output, then scratch for scales and minima as float32.
    """
    tokens, codes, *rest = refs
    arrays = (len(rest) - 1) // 2
    stored, out, floats = rest[:arrays], rest[arrays], rest[arrays + 1 :]
    for source, target in zip(stored, floats, strict=True):
        target[...] = as_floats(source[...])
    lane = tokens[pl.program_id(0)] % LANES
    picked = lax.broadcasted_iota(jnp.int32, (8, LANES), 1) == lane
    for index in range(out.shape[2] // unit):
        weights = unpacked(codes, index, unit, bits, zero) * spread(floats[0], index, unit, group)
        if len(floats) > 1:
            weights = weights + spread(floats[1], index, unit, group)
        row = lax.dot_general(
            picked.astype(jnp.float32),
            weights,
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        out[0, :, index * unit : (index + 1) * unit] = row[:1]
