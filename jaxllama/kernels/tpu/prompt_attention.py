"""Prompt attention on a TPU: a run of tokens of one slot attends to the cache, itself included.

Blocks of keys lie on a grid that starts at column 0, and a block that a row may not see changes
none of its bits: so a row's bits depend neither on where its chunk began nor on other rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllama.kernels.platform import interpreted
from jaxllama.kernels.tpu.scores import (
    KeyMask,
    RunningSoftmax,
    attention_cost,
    keys_of,
    product,
    values_of,
)
from jaxllama.shapes import Array, Float, Int32

ROWS = 1024  # query rows of one iteration of the grid, heads of a group counted one by one
PART = 256  # query rows that are attended at a time
TILE = 16  # rows of a tile of bfloat16


def attend_run(  # noqa: PLR0913, PLR0917 - the operation's arguments
    queries: Float[Array, "K R W"],
    layer: tuple[Array, ...],
    slot: Int32[Array, ""],
    start: Int32[Array, ""],
    group: int,
    block: int,
    window: int | None,
    cap: float | None,
) -> Float[Array, "K R W"]:
    """Compute attention of prompt rows to the columns of their slot, each up to its own column.

    `queries` are rotated and scaled. `layer` is the cache, which already holds the keys and values
    of these rows. A token has `group` rows in each key/value head, one per query head that shares
    it: row r belongs to the token at column (start + r // group). `block` is the number of columns
    read at a time. `window` is the length of the sliding window, `cap` the tanh cap of scores;
    None: no limit.
    """
    kv_heads, rows, width = queries.shape
    tokens = rows // group
    taken = next(n for n in range(tokens, 0, -1) if tokens % n == 0 and n * group <= ROWS)
    size = taken * group
    position = start + jnp.arange(rows, dtype=jnp.int32)[:, None] // group
    columns = layer[0].shape[2]

    def block_of(index: Any, run: Any, at: Any) -> Any:
        first, last = reach(at[1], run, taken, block, window)
        return jnp.clip(index, first, last)

    def of_queries(head: Any, run: Any, index: Any, at: Any) -> tuple[Any, ...]:
        del index, at
        return head, run, 0

    def of_numbers(head: Any, run: Any, index: Any, at: Any) -> tuple[Any, ...]:
        return at[0], head, block_of(index, run, at), 0

    def of_scales(head: Any, run: Any, index: Any, at: Any) -> tuple[Any, ...]:
        del head
        return 0, 0, block_of(index, run, at)

    # Scales of this slot alone: XLA would bring small arrays to VMEM whole, those of all slots.
    scales = [lax.dynamic_slice_in_dim(part, slot, 1) for part in layer[1:]]
    one_slot = jax.ShapeDtypeStruct((1, *layer[0].shape[1:]), layer[0].dtype)
    specs = [pl.BlockSpec((1, 1, block, layer[0].shape[3]), of_numbers)]
    specs += [pl.BlockSpec((1, part.shape[1], block), of_scales) for part in scales]
    out: Array = pl.pallas_call(
        partial(attend_kernel, taken, window, cap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(kv_heads, rows // size, columns // block),
            in_specs=[
                pl.BlockSpec((size, 1), lambda _, run, *__: (run, 0)),
                pl.BlockSpec((1, size, width), of_queries),
                *specs,
            ],
            out_specs=pl.BlockSpec((1, size, width), of_queries),
            scratch_shapes=RunningSoftmax.scratch((size,), width),
        ),
        out_shape=jax.ShapeDtypeStruct(queries.shape, jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=48 << 20,
        ),
        cost_estimate=attention_cost(queries, (one_slot, *scales)),
        interpret=interpreted(),
        name="prompt_attention",
    )(jnp.stack([slot, start]).astype(jnp.int32), position, queries, layer[0], *scales)
    return out


def reach(start: Any, run: Any, taken: int, block: int, window: int | None) -> tuple[Any, Any]:
    """Return the first and the last block of columns that a group of prompt tokens attends to.

    `run` is the index of the group; every group has `taken` tokens. The first token of the prompt
    is at column `start`, and a block has `block` columns. `window` limits the columns; None: no
    limit.
    """
    begin = start + run * taken
    last = (begin + taken - 1) // block
    first = 0 if window is None else jnp.maximum(begin - window + 1, 0) // block
    return first, last


def attend_kernel(taken: int, window: int | None, cap: float | None, *refs: Any) -> None:
    """Add one block of columns to the running softmax of some rows, for one head (Pallas).

    `taken` is the number of tokens of these rows. `refs` are (slot, first column), the rows'
    positions, the queries, keys and values of the block, any int8 scales, the output, and scratch
    for a RunningSoftmax. The output is written after the last block. `window` limits the columns,
    `cap` the scores; None: no limit.
    """
    at, position, queries, numbers, *scales = refs[:-4]
    out, *state = refs[-4:]
    head, run, index = (pl.program_id(axis) for axis in range(3))
    block, size = numbers.shape[2], queries.shape[1]
    first, last = reach(at[1], run, taken, block, window)

    @pl.when(index == first)
    def _begin() -> None:
        RunningSoftmax(*state).begin()

    def attend_rows(number: Array, _: None) -> None:
        """Add the block to the softmax of part `number` of the rows.

        All rows at once would compile slowly.
        """
        rows = pl.ds(pl.multiple_of(number * part, part), part)
        softmax = RunningSoftmax(*(each.at[rows] for each in state))
        q = queries[0, rows]
        pairs = numbers[0, 0].astype(q.dtype)
        scores = product("rw,tw->rt", q, keys_of(pairs, q.shape[1]))
        scores = scores * scales[0][0, pl.ds(2 * head, 1), :] if scales else scores
        seen = KeyMask(index * block, position[rows], window).of(scores.shape, 1)
        weights = softmax.weigh(scores, seen, cap)
        weights = weights * scales[0][0, pl.ds(2 * head + 1, 1), :] if scales else weights
        values = values_of(pairs, q.shape[1])
        softmax.add(product("rt,tw->rw", weights.astype(q.dtype), values))

    part = part_of(size)

    @pl.when((index >= first) & (index <= last))
    def _add() -> None:
        lax.fori_loop(0, size // part, attend_rows, None)

    @pl.when(index == last)
    def _finish() -> None:
        out[0] = RunningSoftmax(*state).mean


def part_of(rows: int) -> int:
    """Return how many of `rows` rows to compute at a time: a multiple of TILE, or all of them."""
    sizes = range(min(rows, PART), 0, -1)
    is_whole = (size for size in sizes if rows % size == 0 and size % TILE == 0)
    return next(is_whole, rows)
