"""Matmul of the GPU body: dense by XLA, packed by a kernel that reads every byte once.

A decode step multiplies few rows: the kernel unpacks a matrix in registers. A prompt multiplies
many: there the matrix is unpacked once per call, and XLA multiplies. The order of every sum depends
on the shape of the matrix and on which of the two it is, so a row has the same bits in any company.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllama.kernels.gpu.tiles import multiply
from jaxllama.kernels.packed import Packed, holds_float8, in_order, unpack_after
from jaxllama.kernels.platform import interpreted
from jaxllama.shapes import Array, Float

MOST_ROWS = 128  # of a step
LEAST_ROWS = 16  # rows of a matmul on tensor cores
OUTPUTS = 32, 16  # of one program of the kernel: the first that divides those of the matrix
BLOCK = 128  # inputs of one iteration
PROGRAMS = 264  # that keep a large GPU busy: two for each multiprocessor of an H100
MOST_PARTS = 8  # into which the inputs are split if there are few outputs


def multiply_dense(x: Float[Array, "L I"], matrix: Array, contracted: int) -> Float[Array, "L O"]:
    """Return x · matrix with float32 sums; `contracted` is the axis of the matrix's inputs."""
    exact = matrix.dtype == jnp.float32
    return lax.dot_general(
        x.astype(matrix.dtype),
        matrix,
        (((1,), (contracted,)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def multiply_packed(x: Float[Array, "L I"], packed: Packed, dtype: Any) -> Float[Array, "L O"]:
    """Return x · matrix with float32 sums; x and the unpacked matrix are rounded to `dtype`."""
    rows, inward = x.shape
    tiling = tiling_of(rows, inward, packed)
    if tiling is None:
        x, matrix = unpack_after(x, packed)
        return multiply_dense(in_order(packed, x), matrix.astype(dtype), 1)
    x = in_order(packed, x).astype(dtype)
    x = jnp.pad(x, ((0, tiling.rows - rows), (0, 0)))
    # By input: even and odd ones apart, as they lie in the bytes of a 4-bit matrix.
    by_input = x.reshape(tiling.rows, -1, tiling.halves).transpose(2, 1, 0)
    arrays = [packed.codes, packed.scales] + ([] if packed.minima is None else [packed.minima])
    outward = packed.codes.shape[0]
    found = pl.pallas_call(
        partial(packed_kernel, tiling=tiling, group=packed.group),
        grid=(outward // tiling.outputs, tiling.parts),
        out_shape=jax.ShapeDtypeStruct((tiling.parts, tiling.rows, outward), jnp.float32),
        interpret=interpreted(),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=4),
        name="multiply_packed",
    )(by_input, *arrays)
    return jnp.sum(found, axis=0)[:rows] if tiling.parts > 1 else found[0, :rows]


class Tiling(NamedTuple):
    """The block sizes with which the kernel divides a matmul."""

    rows: int  # padded
    outputs: int  # of one program
    block: int  # inputs of one iteration
    parts: int  # into which the inputs are split
    halves: int  # inputs that share a byte


def tiling_of(rows: int, inward: int, packed: Packed) -> Tiling | None:
    """Choose the block sizes of a packed matmul; None if XLA should multiply instead.

    `rows` and `inward` are the numbers of rows and of inputs of the left factor x.
    """
    halves = 2 if packed.bits == 4 else 1  # noqa: PLR2004
    block = BLOCK
    while inward % block:
        block //= 2
    group = packed.group
    fits = block >= LEAST_ROWS * halves and not (block % group and group % block)
    outward = packed.codes.shape[0]
    outputs = next((each for each in OUTPUTS if outward % each == 0), None)
    if rows > MOST_ROWS or not fits or group % halves or group & (group - 1) or outputs is None:
        return None
    wanted = max(1, min(MOST_PARTS, PROGRAMS * outputs // outward))
    blocks = inward // block
    parts = next(each for each in range(wanted, 0, -1) if blocks % each == 0)
    return Tiling(max(LEAST_ROWS, pl.next_power_of_2(rows)), outputs, block, parts, halves)


def packed_kernel(x: Any, codes: Any, *refs: Any, tiling: Tiling, group: int) -> None:
    """Multiply all rows by one block of outputs, over one part of the inputs (Pallas).

    Inputs: `x` [halves, inputs, rows], with two halves for 4-bit codes (even and odd inputs), else
    one; and `codes`. `refs` are the scales, the minima if there are any, and the output [parts,
    rows, outputs], whose parts the caller adds up. `tiling` has the block sizes; `group` is the
    number of inputs that share a scale.
    """
    *sides, out = refs
    stored = codes.shape[1]
    tile, part = pl.program_id(0), pl.program_id(1)
    outputs = tiling.outputs
    rows = pl.ds(tile * outputs, outputs)
    width = tiling.block // tiling.halves  # codes of one iteration
    blocks = stored // width // tiling.parts
    in_block = max(1, tiling.block // group)  # groups

    def spread(side: Any, index: Array) -> Array:
        """Return the scale (or minimum) of each code of block number `index` of the inputs.

        `side` is the array of scales or that of minima.
        """
        first = index * tiling.block // group
        read = side[rows, pl.ds(first, in_block)].astype(jnp.float32)
        wide = jnp.broadcast_to(read[:, :, None], (outputs, in_block, width // in_block))
        return wide.reshape(outputs, width)

    def block(step: Array, total: Array) -> Array:
        index = part * blocks + step
        at = index * width
        read = codes[rows, pl.ds(at, width)]
        read = read if holds_float8(codes) else read.astype(jnp.int32)
        factors = [spread(each, index) for each in sides]
        for half in range(tiling.halves):
            nibbles = (read >> 4 if half else read & 15) if tiling.halves > 1 else read
            weight = nibbles.astype(jnp.float32) * factors[0]
            if len(factors) > 1:
                weight += factors[1]
            own = x[half, pl.ds(at, width), :]
            total += multiply(weight.astype(own.dtype), own)
        return total

    total = lax.fori_loop(0, blocks, block, jnp.zeros((outputs, tiling.rows), jnp.float32))
    out[part, :, rows] = total.T
