"""Attention kernels for GPUs: one token of every slot, and the rows of a prompt.

Written in Pallas for its Triton backend, which compiles for NVIDIA and AMD GPUs. Each row walks its
own keys only, in blocks of a fixed size with a running softmax; the number of parts into which a
row's keys are split depends on the capacity of a slot alone. So no row's bits depend on other rows.
`attention.py` calls the kernels.
"""

import functools
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllama.kernels.body import PromptSpan
from jaxllama.kernels.gpu.tiles import multiply
from jaxllama.kernels.platform import interpreted
from jaxllama.kernels.storage import LARGEST, SMALLEST, Layer
from jaxllama.shapes import Array, Bool, Float, Int32

HIDDEN = -1e30  # score of a key that may not be seen; finite, so that -inf - -inf cannot arise
STEP_BLOCK = 64  # keys per iteration of a step
PART = 512  # columns of one part of a row
LEAST_ROWS = 16  # rows of a matmul on tensor cores
PROMPT_ROWS, PROMPT_BLOCK = 64, 64  # queries and keys of one iteration of a prompt


SIDES = 2  # arrays of a float cache: keys and values; an int8 cache has their scales, too


class ColumnBlock(NamedTuple):
    """Consecutive columns in the KV cache, of one row and one key/value head."""

    row: Any
    head: Any
    start: Any
    columns: int


class StepShape(NamedTuple):
    """The sizes for the attention kernel of a decode step, which is compiled for them."""

    heads: int
    kv_heads: int
    size: int  # of a head
    columns: int  # of the cache, scratch included
    window: int | None
    cap: float | None

    @property
    def group(self) -> int:
        """Return the number of query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def padded(self) -> int:
        """Return the number of query heads per key/value head, rounded up to a power of two.

        It is at least 16, the rows that tensor cores multiply at a time.
        """
        return max(LEAST_ROWS, pl.next_power_of_2(self.group))

    @property
    def parts(self) -> int:
        """Return the number of parts into which the cache columns of a slot are split."""
        return -(-self.columns // PART)


def attend_rows(
    qkv: Float[Array, "S P H"],
    rotation: tuple[Float[Array, "S U"], Float[Array, "S U"]],
    layer: Layer,
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    shape: StepShape,
) -> tuple[Float[Array, "S W"], Layer]:
    """Compute attention of a decode step for the active rows; store their keys and values.

    Returns the weighted mean of the values for all heads side by side, and the layer of the KV
    cache with the new columns. `rotation` has the rotary tables. `qkv` holds all heads of queries,
    then of keys, then of values; `position` is the cache column of each row's token; `shape` has
    the sizes. Rows that are not active change nothing; their result is 0.
    """
    slots = qkv.shape[0]
    # A row that is not active has no columns: its position is before the first one.
    place = jnp.where(active, position, -1).astype(jnp.int32)
    sums = jax.ShapeDtypeStruct((slots, shape.kv_heads, shape.parts, shape.group), jnp.float32)
    mixed = jax.ShapeDtypeStruct((*sums.shape, shape.size), jnp.float32)
    first = 4  # arguments before the cache
    found = pl.pallas_call(
        partial(step_kernel, shape=shape, sides=len(layer)),
        grid=(slots, shape.kv_heads, shape.parts),
        out_shape=(
            *(jax.ShapeDtypeStruct(part.shape, part.dtype) for part in layer),
            mixed,
            sums,
            sums,
        ),
        input_output_aliases={first + place: place for place in range(len(layer))},
        interpret=interpreted(),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        name="attend_step",
    )(qkv, *rotation, place, *layer)
    layer, parts = tuple(found[: len(layer)]), found[len(layer) :]
    return combine(parts, place, shape, dot_type(layer[0].dtype)), layer


def step_kernel(
    qkv: Any, cos: Any, sin: Any, place: Any, *refs: Any, shape: StepShape, sides: int
) -> None:
    """Compute attention of one row and key/value head over one part of the cache columns (Pallas).

    Inputs: `qkv`, for every row all heads of queries, then of keys, then of values; the rotary
    tables `cos` and `sin`; and `place`, each row's newest column (-1: inactive). `refs` are the
    arrays of the cache layer (`sides` of them) as inputs, the same as outputs, then three outputs
    for each part: weighted values, largest scores and sums of weights. The row's new key and value
    are written to the cache.
    """
    cache, out, tops, totals = refs[sides : 2 * sides], *refs[2 * sides :]
    row, head, part = (pl.program_id(axis) for axis in range(3))
    half = shape.size // 2
    at = place[row]
    begin = part * PART
    # The row's own column is added from registers: no thread waits for another one's write.
    end = jnp.minimum(at, begin + PART)
    if shape.window is not None:
        begin = jnp.maximum(begin, at - shape.window + 1)
    has_own = (at >= part * PART) & (at < (part + 1) * PART)

    @pl.when((begin < end) | has_own)
    def _() -> None:
        angles = cos[row, :], sin[row, :]
        heads = jnp.arange(shape.padded)
        query_heads = head * shape.group + jnp.minimum(heads, shape.group - 1)
        q = rotate_halves(read_halves(qkv, row, query_heads, half), angles)
        scale = shape.size**-0.5
        kind = dot_type(cache[0].dtype)
        q = tuple((each * scale).astype(kind) for each in q)
        k = rotate_halves(read_halves(qkv, row, shape.heads + head, half), angles)
        v = read_halves(qkv, row, shape.heads + shape.kv_heads + head, half)
        own_k, own_v = append(cache, (k, v), (row, head, jnp.maximum(at, 0)), has_own)
        # Starts with the row's own column in the part that holds it.
        pairs = zip(q, own_k, strict=True)
        own = total_of(jnp.sum(a.astype(jnp.float32) * b[None, :], 1) for a, b in pairs)
        own = bend(own, shape.cap)
        top = jnp.where(has_own, own, HIDDEN)
        total = jnp.where(has_own, jnp.ones_like(own), 0.0)
        mixed = tuple(
            jnp.where(has_own, jnp.broadcast_to(b[None, :], (shape.padded, half)), 0.0)
            for b in own_v
        )

        def block(index: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            start = index * STEP_BLOCK
            columns = start + jnp.arange(STEP_BLOCK)
            seen = (columns >= begin) & (columns < end)
            return fold(
                cache, ColumnBlock(row, head, start, STEP_BLOCK), q, seen[None, :], carry, shape.cap
            )

        blocks = begin // STEP_BLOCK, pl.cdiv(end, STEP_BLOCK)
        top, total, *mixed = lax.fori_loop(*blocks, block, (top, total, *mixed))
        # The rows after the last head repeat it, so it may be written several times.
        lanes = jnp.minimum(heads, shape.group - 1)
        tops[row, head, part, lanes] = top
        totals[row, head, part, lanes] = total
        for index, each in enumerate(mixed):
            numbers = index * half + jnp.arange(half)
            out[row, head, part, lanes[:, None], numbers[None, :]] = each


def read_halves(qkv: Any, row: Any, heads: Any, half: int) -> tuple[Array, Array]:
    """Return the first and the second half of some heads of a row, which rotary embedding pairs.

    `qkv` is [rows, heads, numbers]; `heads` is one index or an array of them; `half` is the number
    of numbers in a half.
    """
    low = jnp.arange(half)
    if getattr(heads, "ndim", 0):
        return qkv[row, heads[:, None], low[None, :]], qkv[row, heads[:, None], half + low[None, :]]
    return qkv[row, heads, pl.ds(0, half)], qkv[row, heads, pl.ds(half, half)]


def rotate_halves(halves: tuple[Array, Array], angles: tuple[Array, Array]) -> tuple[Array, Array]:
    """Apply the rotary embedding to both halves of heads; `angles` are cosines and sines."""
    (one, other), (cos, sin) = halves, angles
    return one * cos - other * sin, other * cos + one * sin


def dot_type(stored: Any) -> Any:
    """Return the dtype of the query-key product: the cache's (`stored`), or bfloat16 for int8."""
    return jnp.bfloat16 if stored == jnp.int8 else stored


def bend(scores: Array, cap: float | None) -> Array:
    """Limit attention scores smoothly: cap * tanh(scores / cap). `cap` None changes nothing."""
    if cap is None:
        return scores
    return cap * (1.0 - 2.0 / (jnp.exp(2.0 * scores / cap) + 1.0))  # tanh


def append(
    cache: Any, new: tuple[tuple[Array, Array], ...], place: tuple[Any, Any, Any], write: Any
) -> list[tuple[Array, ...]]:
    """Write one key and value to the KV cache if `write`; return what reading them back would give.

    `cache` are the arrays of a cache layer, `new` is (key, value), each as its two halves, and
    `place` is (row, head, column). The result is [key, value], rounded as the cache stores them,
    each as two halves in float32.
    """
    row, head, column = place
    found = []
    for side, halves in enumerate(new):
        numbers = cache[side]
        half = halves[0].shape[0]
        if len(cache) == SIDES:
            kept = tuple(each.astype(numbers.dtype) for each in halves)
            back = tuple(each.astype(jnp.float32) for each in kept)
        else:
            scales = cache[2 + side]
            top = jnp.maximum(jnp.max(jnp.abs(halves[0])), jnp.max(jnp.abs(halves[1])))
            scale = top / LARGEST
            inverse = jnp.where(scale > SMALLEST, 1.0 / scale, 0.0)
            kept = tuple(jnp.floor(each * inverse + 0.5).astype(jnp.int8) for each in halves)
            back = tuple(each.astype(jnp.float32) * scale for each in kept)
            plgpu.store(scales.at[row, head, column], scale, mask=write)
        for index, each in enumerate(kept):
            where = numbers.at[row, head, column, pl.ds(index * half, half)]
            plgpu.store(where, each, mask=jnp.broadcast_to(write, (half,)))
        found.append(back)
    return found


def fold(
    cache: Any,
    where: ColumnBlock,
    q: tuple[Array, ...],
    seen: Bool[Array, "R B"],
    carry: tuple[Any, ...],
    cap: float | None,
) -> tuple[Any, ...]:
    """Add a block of columns to the running softmax of some queries; return the new carry.

    `cache` are the arrays of a cache layer, `where` says which block of columns to read. `q` holds
    the queries: one array, or two that have the first and the second half of each head; `seen`
    masks the columns that each query may attend to. The carry is the largest score, the sum of
    weights and the weighted values (cut like `q`) so far. `cap` limits scores, None: no limit.
    """
    row, head, start, count = where
    top, total, *mixed = carry
    size = q[0].shape[1]
    columns = pl.ds(start, count)
    pieces = [pl.ds(index * size, size) for index in range(len(q))]
    keys = [cache[0][row, head, columns, each].astype(q[0].dtype) for each in pieces]
    scores = total_of(multiply(a, b.T) for a, b in zip(q, keys, strict=True))
    if len(cache) > SIDES:
        scores *= cache[2][row, head, columns][None, :]
    scores = jnp.where(seen, bend(scores, cap), HIDDEN)
    higher = jnp.maximum(top, jnp.max(scores, axis=1))
    weight = jnp.where(seen, jnp.exp(scores - higher[:, None]), 0.0)
    fade = jnp.exp(top - higher)
    total = total * fade + jnp.sum(weight, axis=1)
    if len(cache) > SIDES:
        weight *= cache[3][row, head, columns][None, :]
    weight = weight.astype(q[0].dtype)
    values = [cache[1][row, head, columns, each].astype(q[0].dtype) for each in pieces]
    mixed = [
        old * fade[:, None] + multiply(weight, each)
        for old, each in zip(mixed, values, strict=True)
    ]
    return higher, total, *mixed


def total_of(parts: Iterable[Array]) -> Array:
    """Return the sum of several arrays, added in their order."""
    return functools.reduce(jnp.add, parts)


def attend_queries(
    q: Float[Array, "L N H"], layer: Layer, span: PromptSpan, window: int | None, cap: float | None
) -> tuple[Float[Array, "L W"], Layer]:
    """Compute attention of prompt rows to the columns of their slot, each up to its own column.

    Returns it with the layer, which is unchanged, but counts as a result of the kernel: later
    writes then come after its reads, and XLA makes no copy for them. The queries `q` are rotated,
    and the rows' own columns are in the cache already. `span` is the slot, the first row's column
    and the number of real rows. `window` limits the columns, `cap` the scores; None: no limit.
    """
    rows, heads, size = q.shape
    tile = min(PROMPT_ROWS, max(LEAST_ROWS, pl.next_power_of_2(rows)))
    tiles = -(-rows // tile)
    q = (q * size**-0.5).astype(dot_type(layer[0].dtype))
    q = jnp.pad(q, ((0, tiles * tile - rows), (0, 0), (0, 0)))
    kernel = partial(
        prompt_kernel, group=heads // layer[0].shape[1], tile=tile, window=window, cap=cap
    )
    first = 2  # arguments before the cache
    out, *same = pl.pallas_call(
        kernel,
        grid=(heads, tiles),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            *(jax.ShapeDtypeStruct(part.shape, part.dtype) for part in layer),
        ),
        input_output_aliases={first + place: 1 + place for place in range(len(layer))},
        interpret=interpreted(),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        name="attend_prompt",
    )(q, jnp.stack(span).astype(jnp.int32), *layer)
    return out[:rows].reshape(rows, heads * size), tuple(same)


def prompt_kernel(
    q: Any,
    span: Any,
    *refs: Any,
    group: int,
    tile: int,
    window: int | None,
    cap: float | None,
) -> None:
    """Compute attention of `tile` prompt rows, for one query head (Pallas).

    Inputs: `q`, the scaled queries of all rows and heads; `span`, the slot, the first row's column
    and the number of real rows. `refs` are the arrays of the cache layer, then the output, of the
    shape of `q`, then the arrays of the layer as outputs, which are not written. `group` query
    heads share a key/value head. `window` limits the columns, `cap` the scores; None: no limit.
    """
    cache, out = refs[: len(refs) // 2], refs[len(refs) // 2]
    head, index = pl.program_id(0), pl.program_id(1)
    slot, start, count = span[0], span[1], span[2]
    own = pl.ds(index * tile, tile)
    first = start + index * tile
    position = first + jnp.arange(tile)
    size = q.shape[-1]

    def block(number: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        columns = number * PROMPT_BLOCK + jnp.arange(PROMPT_BLOCK)
        seen = columns[None, :] <= position[:, None]
        if window is not None:
            seen &= columns[None, :] > position[:, None] - window
        where = ColumnBlock(slot, head // group, number * PROMPT_BLOCK, PROMPT_BLOCK)
        return fold(cache, where, (q[own, head, :],), seen, carry, cap)

    begin = 0 if window is None else jnp.maximum(first - window + 1, 0) // PROMPT_BLOCK
    # Rows past the prompt are not wanted: a tile without any other row does nothing.
    end = jnp.where(index * tile < count, pl.cdiv(first + tile, PROMPT_BLOCK), begin)
    nothing = (
        jnp.full((tile,), HIDDEN, jnp.float32),
        jnp.zeros((tile,), jnp.float32),
        jnp.zeros((tile, size), jnp.float32),
    )
    _, total, mixed = lax.fori_loop(begin, end, block, nothing)
    out[own, head, :] = mixed / jnp.maximum(total, 1e-30)[:, None]


def combine(
    parts: tuple[Array, Array, Array], place: Int32[Array, " S"], shape: StepShape, dtype: Any
) -> Float[Array, "S W"]:
    """Combine the partial softmaxes of each row into its attention result [S W], of type `dtype`.

    `parts` are the three outputs of `step_kernel`: weighted values, largest scores and sums of
    weights for each part of the columns. `place` is the last column of each row, below 0 for
    inactive rows.
    """
    mixed, tops, totals = parts
    slots = mixed.shape[0]
    out = pl.pallas_call(
        partial(combine_kernel, shape=shape),
        grid=(slots, shape.heads),
        out_shape=jax.ShapeDtypeStruct((slots, shape.heads, shape.size), dtype),
        interpret=interpreted(),
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
        name="attend_step_combine",
    )(mixed, tops, totals, place)
    return out.reshape(slots, shape.heads * shape.size)


def combine_kernel(
    mixed: Any, tops: Any, totals: Any, place: Any, out: Any, *, shape: StepShape
) -> None:
    """Combine the partial softmaxes of one query head of one row (Pallas).

    Attention was computed over parts of the columns. `mixed`, `tops` and `totals` are the outputs
    of `step_kernel`: weighted values, largest scores and sums of weights for each part. `place` is
    the last column of each row, below 0 for inactive ones. The result goes to `out` [row, head].
    """
    row, query = pl.program_id(0), pl.program_id(1)
    head, lane = query // shape.group, query % shape.group
    at = place[row]
    first = 0 if shape.window is None else jnp.maximum(at - shape.window + 1, 0) // PART
    last = jnp.where(at < 0, first, at // PART + 1)

    def add(part: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, sum_ = carry
        own = tops[row, head, part, lane]
        higher = jnp.maximum(top, own)
        fade, scale = jnp.exp(top - higher), jnp.exp(own - higher)
        total = total * fade + totals[row, head, part, lane] * scale
        return higher, total, sum_ * fade + mixed[row, head, part, lane, :] * scale

    nothing = jnp.float32(HIDDEN), jnp.float32(0.0), jnp.zeros((shape.size,), jnp.float32)
    _, total, sum_ = lax.fori_loop(first, last, add, nothing)
    out[row, query, :] = (sum_ / jnp.maximum(total, 1e-30)).astype(out.dtype)
