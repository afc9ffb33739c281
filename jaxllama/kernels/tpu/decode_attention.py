"""Decode attention on a TPU: one kernel appends a column to every active row and attends.

A row reads the blocks of its own length and no others, so its time and its bits depend on no other
row. Several blocks are on their way at a time; the newest block of a row takes the new column while
it is in VMEM, and only the few columns around the new one are written back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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

COPIES = 4  # blocks in VMEM: one in use, the others on their way
ROWS = 32  # slots of one iteration of the grid, at most
WRITTEN = 32  # columns written back around a new one: whole tiles of every dtype

Place = tuple[Array, Array]  # a row and one of its blocks; a row at the end means none


def attend_rows(  # noqa: PLR0913, PLR0917 - the operation's arguments
    queries: Float[Array, "S K G W"],
    new: tuple[Array, ...],
    layer: tuple[Array, ...],
    position: Int32[Array, " S"],
    block: int,
    window: int | None,
    cap: float | None,
) -> tuple[Float[Array, "S K G W"], tuple[Array, ...]]:
    """Store the new key and value of every active row, and compute attention for its queries.

    A row is a slot. Its position is the column of its new token, up to which it attends; below 0,
    it is not active. `new` is an array [S K 1 2H] of keys beside values, and for an int8 cache also
    an array [S 2K 1] of scales: float32 numbers that the cache's dtype holds exactly. `block` is
    the number of columns read at a time. `window` is the length of the sliding window, `cap` the
    tanh cap of scores; None: no limit. Returns the result (0 in rows not active) and the new layer;
    consumes `layer`.
    """
    slots, kv_heads, group, width = queries.shape
    rows = next(count for count in range(min(ROWS, slots), 0, -1) if slots % count == 0)
    given = (queries, *new)
    softmax = RunningSoftmax.scratch((kv_heads, group), width)
    blocks = [
        pltpu.VMEM((COPIES, part.shape[1], block, *part.shape[3:]), part.dtype) for part in layer
    ]
    semaphores = [pltpu.SemaphoreType.DMA((COPIES, len(layer))), pltpu.SemaphoreType.DMA((2,))]
    # HBM, also of the results: XLA would else bring all columns of a small layer to VMEM and back.
    layer_specs = [pl.BlockSpec(memory_space=pltpu.HBM)] * len(layer)
    out, *updated = pl.pallas_call(
        partial(attend_kernel, rows, len(layer), window, cap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(slots // rows,),
            in_specs=[*(by_rows(rows, each) for each in given), *layer_specs],
            out_specs=[by_rows(rows, queries), *layer_specs],
            scratch_shapes=[*softmax, *blocks, *semaphores],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, jnp.float32),
            *(pltpu.HBM(part.shape, part.dtype) for part in layer),
        ],
        input_output_aliases={2 + len(given) + i: 1 + i for i in range(len(layer))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=attention_cost(queries, layer),
        interpret=interpreted(),
        name="decode_attention",
    )(position, next_rows(position, rows), *given, *layer)
    return out, tuple(updated)


def by_rows(rows: int, array: Array) -> pl.BlockSpec:
    """Return the Pallas BlockSpec that gives a grid iteration `rows` slots of an array [S ...]."""
    rest = array.shape[1:]
    return pl.BlockSpec((rows, *rest), lambda index, *_: (index, *(0,) * len(rest)))


def next_rows(position: Int32[Array, " S"], rows: int) -> Int32[Array, " S"]:
    """Return, for each slot, the index of the next active slot, which may be the slot itself.

    A grid iteration has `rows` slots, and only slots of the same iteration are considered. If none
    of them is active, the result is S, the number of all slots. `position` is below 0 for inactive
    slots.
    """
    slots = position.shape[0]
    place = jnp.arange(slots)
    is_later = (place[None, :] >= place[:, None]) & (position >= 0)[None, :]
    is_same = place[None, :] // rows == place[:, None] // rows
    return jnp.min(jnp.where(is_later & is_same, place, slots), axis=1).astype(jnp.int32)


def attend_kernel(rows: int, parts: int, window: int | None, cap: float | None, *refs: Any) -> None:
    """Compute attention for the active ones of `rows` slots, a block of columns at a time (Pallas).

    `refs` are the inputs (positions, the next active slot of each slot, queries, the new column and
    the cache layer of `parts` arrays), the outputs (result and layer), and scratch: a
    RunningSoftmax, a buffer for each array of the layer, and semaphores. `window` limits the
    columns, `cap` the scores; None: no limit.
    """
    position, upcoming, queries, *new = refs[: 3 + parts]
    out, *layer = refs[3 + 2 * parts : 4 + 3 * parts]
    softmax = RunningSoftmax(*refs[4 + 3 * parts : 7 + 3 * parts])
    *blocks, arrived, written = refs[7 + 3 * parts :]
    start = pl.program_id(0) * rows
    walk = RowWalk(position, upcoming, start + rows, blocks[0].shape[2], window)
    copies = BlockCopies(layer, blocks, arrived, written, walk.size)
    attention = RowAttention(walk, copies, softmax, queries, new, out, start, cap)
    out[...] = jnp.zeros(out.shape, out.dtype)
    first = walk.begin(start)
    ahead = first
    for step in range(COPIES - 1):
        ahead = attention.send_for(ahead, jnp.int32(step))
    carry = (first, jnp.int32(0), ahead)
    lax.while_loop(lambda carry: carry[0][0] < walk.end, attention.attend_block, carry)


def fold_block(
    softmax: RunningSoftmax,
    q: Float[Array, "K G W"],
    block: Sequence[Array],
    mask: KeyMask,
    cap: float | None,
) -> None:
    """Add one block of a row's keys and values to the running softmax of the row.

    `softmax` is changed in place. `q` are the row's queries. `block` is an array [K T 2H] of keys
    beside values, and for an int8 cache also an array [2K T] of scales. `mask` says which columns
    the row attends to; `cap` is the tanh cap of scores (None: no limit).
    """
    numbers, scales = block[0].astype(q.dtype), block[1:]
    scores = product("kgw,ktw->kgt", q, keys_of(numbers, q.shape[2]))
    scores = scores * heads_of(scales[0], 0) if scales else scores
    weights = softmax.weigh(scores, mask.of(scores.shape, 2), cap)
    weights = weights * heads_of(scales[0], 1) if scales else weights
    values = values_of(numbers, q.shape[2])
    softmax.add(product("kgt,ktw->kgw", weights.astype(q.dtype), values))


def heads_of(scales: Float[Array, "_ T"], side: int) -> Float[Array, "K 1 T"]:
    """Return the scales of a block's int8 keys (`side` 0) or values (`side` 1), a row per head.

    In `scales` the rows alternate: keys of a head, then values of the same head.
    """
    rows = [scales[row : row + 1][None] for row in range(side, scales.shape[0], 2)]
    return jnp.concatenate(rows, axis=0)


@dataclass(frozen=True)
class RowWalk:
    """The order in which a kernel visits the blocks of its active rows."""

    position: Any  # of every slot, in SMEM
    upcoming: Any  # the first active slot from each slot on, in SMEM
    end: Array  # the slot after the last one of this iteration
    size: int  # columns of a block
    window: int | None

    def begin(self, start: Array) -> Place:
        """Return (row, block): the first block of the first active row from slot `start` on.

        A row is a slot. If none is active, the returned row is past the grid iteration's last slot.
        """
        row = self.upcoming[start]
        return row, self.first_block(row)

    def first_block(self, row: Array) -> Array:
        """Return the index of the first block of columns in the sliding window of a row.

        For a row that is not active the result has no meaning.
        """
        if self.window is None:
            return jnp.int32(0)
        column = self.position[jnp.minimum(row, self.end - 1)] - self.window + 1
        return jnp.maximum(column, 0) // self.size

    def after(self, place: Place) -> Place:
        """Return the (row, block) after `place`: the row's next block, or the next row's first.

        Rows that are not active are skipped. After the last block, the returned row is past the
        grid iteration's last slot.
        """
        row, block = place
        inside = jnp.minimum(row, self.end - 1)
        is_last = block >= self.position[inside] // self.size
        following = self.upcoming[jnp.minimum(inside + 1, self.end - 1)]
        following = jnp.where(inside + 1 < self.end, following, self.end)
        next_row = jnp.where(is_last, following, row)
        next_block = jnp.where(is_last, self.first_block(following), block + 1)
        return jnp.where(row < self.end, next_row, row), next_block


@dataclass(frozen=True)
class BlockCopies:
    """Asynchronous copies between the KV cache in main memory (HBM) and buffers in VMEM."""

    layer: Sequence[Any]  # numbers [S K T W], and for int8 scales [S 2K T]
    blocks: Sequence[Any]  # room for COPIES blocks of each
    arrived: Any  # semaphores of blocks on their way
    written: Any  # semaphores of what is written back
    size: int  # columns of a block

    def arrivals(self, place: Place, room: Array) -> list[Any]:
        """Prepare the copies of one block from the cache into buffer number `room`.

        `place` is (row, block). The caller starts the returned copies and waits for them.
        """
        row, block = place
        columns = pl.ds(pl.multiple_of(block * self.size, self.size), self.size)
        return [
            pltpu.make_async_copy(
                part.at[row, :, columns], target.at[room], self.arrived.at[room, i]
            )
            for i, (part, target) in enumerate(zip(self.layer, self.blocks, strict=True))
        ]

    def departures(self, row: Array, at: Array, room: Array) -> list[Any]:
        """Prepare the copies of column `at` and its neighbours from a buffer back to the cache.

        `row` is the slot, `room` the number of the buffer. The caller starts the returned copies
        and waits for them.
        """
        base = pl.multiple_of(at % self.size // WRITTEN * WRITTEN, WRITTEN)
        block = pl.multiple_of(at // self.size * self.size, self.size)
        copies = [
            pltpu.make_async_copy(
                self.blocks[0].at[room, :, pl.ds(base, WRITTEN)],
                self.layer[0].at[row, :, pl.ds(block + base, WRITTEN)],
                self.written.at[0],
            )
        ]
        for source, part in zip(self.blocks[1:], self.layer[1:], strict=True):
            target = part.at[row, :, pl.ds(block, self.size)]
            copies.append(pltpu.make_async_copy(source.at[room], target, self.written.at[1]))
        return copies

    def put(self, new: tuple[Array, ...], inside: Array, room: Array) -> None:
        """Overwrite column `inside` of the block in buffer number `room` with a new token's column.

        `new` is an array [K 1 2H] of the token's keys beside its values, and for an int8 cache also
        an array [2K 1] of scales.
        """
        numbers, *scales = self.blocks
        base = pl.multiple_of(inside // WRITTEN * WRITTEN, WRITTEN)
        around = numbers[room, :, pl.ds(base, WRITTEN), :]
        column = base + lax.broadcasted_iota(jnp.int32, around.shape, 1)
        replaced = jnp.where(column == inside, new[0], around.astype(jnp.float32))
        numbers[room, :, pl.ds(base, WRITTEN), :] = replaced.astype(around.dtype)
        for each, fresh in zip(scales, new[1:], strict=True):
            column = lax.broadcasted_iota(jnp.int32, each.shape[1:], 1)
            each[room] = jnp.where(column == inside, fresh, each[room])


@dataclass(frozen=True)
class RowAttention:
    """Attention of the slots of one grid iteration; each block is copied ahead of its use."""

    walk: RowWalk
    copies: BlockCopies
    softmax: RunningSoftmax
    queries: Any  # [S K G W]
    new: Sequence[Any]  # the new column of every row
    out: Any
    start: Array  # the first slot
    cap: float | None

    def send_for(self, place: Place, step: Array) -> Place:
        """Start to copy the block at `place` into VMEM, if one is left; return the place after it.

        A place is (row, block). `step` numbers the copies and chooses the buffer.
        """

        @pl.when(place[0] < self.walk.end)
        def _() -> None:
            for copy in self.copies.arrivals(place, step % COPIES):
                copy.start()

        return self.walk.after(place)

    def attend_block(self, carry: tuple[Place, Array, Place]) -> tuple[Place, Array, Place]:
        """Add one block to the softmax of its row; at the row's last block, finish the row.

        To finish, the new key and value are stored in the cache, and the row's result is written.
        `carry` is the block to add, the number of the step, and the next block to copy; a block is
        (row, number of the block). Returns the carry of the following step.
        """
        (row, block), step, ahead = carry
        ahead = self.send_for(ahead, step + COPIES - 1)
        room, at, own = step % COPIES, self.walk.position[row], row - self.start
        is_newest = block == at // self.walk.size
        for copy in self.copies.arrivals((row, block), room):
            copy.wait()
        pl.when(block == self.walk.first_block(row))(self.softmax.begin)

        @pl.when(is_newest)
        def _append() -> None:
            column = tuple(each[own] for each in self.new)
            self.copies.put(column, at % self.walk.size, room)
            for copy in self.copies.departures(row, at, room):
                copy.start()

        mask = KeyMask(block * self.walk.size, at, self.walk.window)
        stored = [each[room] for each in self.copies.blocks]
        fold_block(self.softmax, self.queries[own], stored, mask, self.cap)

        @pl.when(is_newest)
        def _finish() -> None:
            self.out[own] = self.softmax.mean
            for copy in self.copies.departures(row, at, room):
                copy.wait()

        return self.walk.after((row, block)), step + 1, ahead
