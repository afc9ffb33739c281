"""Attention of the C++ library: rotate, append to the KV cache in place, attend, in one call.

Called at trace time by the C++ body. Knows arrays, not the requests in the slots. A row gets the
same bits from both functions, independent of the other rows of the call. Arrays that the kernels
cannot process are refused here, while tracing; `plain/attention.py` accepts all. `storage.py`
defines the arrays of a cache.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.kernels.body import PromptSpan, Rotation
from jaxllama.kernels.cpu import library
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

BLOCK = 256  # ATTEND_BLOCK of cpu/attend.h: columns of one partial result
SIZES = range(32, 257, 16)  # head sizes with kernels
STORED = ("uint16", "bfloat16", "float16", "float32", "int8")  # uint16 holds the bits of bfloat16

Cache = tuple[Array, ...]


@scoped
def attend_step(
    qkv: Float[Array, "L W"],
    rotation: Rotation,
    cache: Cache,
    position: Int32[Array, " L"],
    active: Bool[Array, " L"],
    window: int | None = None,
) -> tuple[Float[Array, "L O"], Cache]:
    """Store each row's token at its position and attend up to it; consumes `cache`.

    There is one row for each slot; or there are several, which are consecutive tokens of the slot:
    first the first token of every slot, then the next one of every slot, and so on. `qkv` has
    [query heads, key heads, value heads] side by side, not yet rotated. `position` is the cache
    column of each token. A row that is not active writes nothing and returns zeros. `window` limits
    how many columns a row attends to, None: all.
    """
    heads = query_heads(qkv, rotation, cache, window)
    slots, kv_heads, columns, size = cache[0].shape
    rows = qkv.shape[0]
    if rows % slots:
        raise ValueError(f"there are {rows} rows; as many for each of {slots} slots expected")
    require(position, (rows,), "int32", "position")
    require(active, (rows,), "bool", "active")
    room = [
        jax.ShapeDtypeStruct((rows, heads, -(-columns // BLOCK), size + 2), jnp.float32),
        jax.ShapeDtypeStruct((rows * (kv_heads + 1) + 1,), jnp.int32),
    ]
    given = (qkv, *rotation, position, active)
    out, *_, cache = call("attend_step", given, cache, heads * size, room, window)
    return out, cache


@scoped
def attend_prompt(
    qkv: Float[Array, "L W"],
    rotation: Rotation,
    cache: Cache,
    span: PromptSpan,
    window: int | None = None,
) -> tuple[Float[Array, "L O"], Cache]:
    """Store consecutive tokens in one slot; each attends up to itself. Consumes `cache`.

    `qkv` has [query heads, key heads, value heads] side by side, not yet rotated. `span` is the
    slot, the first column and the number of real rows; rows past these write nothing and return
    zeros. `window` limits how many columns a row attends to, None: all.
    """
    heads = query_heads(qkv, rotation, cache, window)
    for name, number in zip(PromptSpan._fields, span, strict=True):
        require(number, (), "int32", name)
    given = (qkv, *rotation, jnp.stack(span))
    return call("attend_prompt", given, cache, heads * cache[0].shape[3], [], window)


def call(
    name: str,
    given: tuple[Array, ...],
    cache: Cache,
    width: int,
    room: list[jax.ShapeDtypeStruct],
    window: int | None,
) -> tuple[Array, Cache]:
    """Call a C++ attention kernel; return its output and the cache, changed in place.

    `name` is the kernel, `given` are its arguments before the cache, `width` is the number of
    floats in an output row, `room` the shapes of the scratch arrays that the kernel needs. `window`
    limits how many cache columns a row attends to, None: all.
    """
    library.loaded()
    results = [jax.ShapeDtypeStruct((given[0].shape[0], width), jnp.float32), *room]
    fresh = len(results)
    results += [jax.ShapeDtypeStruct(side.shape, side.dtype) for side in cache]
    scaled = "_scaled" if cache[0].dtype == jnp.int8 else ""
    run = jax.ffi.ffi_call(
        f"jaxllama_{name}{scaled}",
        results,
        input_output_aliases={len(given) + i: fresh + i for i in range(len(cache))},
    )
    out = run(*given, *cache, window=np.int64(window or 0))
    return out[0], tuple(out[fresh:])


def query_heads(
    qkv: Float[Array, "L W"], rotation: Rotation, cache: Cache, window: int | None
) -> int:
    """Return the number of query heads; raise ValueError for arrays that no kernel can take.

    `qkv` has [query heads, key heads, value heads] side by side. `window` limits how many cache
    columns a row attends to, None: all.
    """
    check_cache(cache)
    _, kv_heads, _, size = cache[0].shape
    require_axes(qkv, "rows width", "the projections")
    rows, width = qkv.shape
    require(qkv, (rows, width), "float32", "the projections")
    heads = width // size - 2 * kv_heads
    if width % size or heads < 1 or heads % kv_heads:
        raise ValueError(
            f"projections {width} wide do not hold a whole group of query heads of size {size} for "
            f"each of {kv_heads} key heads"
        )
    for name, table in zip(("cos", "sin"), rotation, strict=True):
        require(table, (rows, size // 2), "float32", name)
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1, or None")
    return heads


def check_cache(cache: Cache) -> None:
    """Raise ValueError unless the kernels can read and write this cache."""
    keys, values, *scales = cache
    require_axes(keys, "slots heads columns size", "keys")
    require(values, keys.shape, keys.dtype.name, "values")
    size = keys.shape[3]
    if size not in SIZES:
        raise ValueError(
            f"the head size is {size}; the kernels take {SIZES[0]} to {SIZES[-1]} in "
            f"steps of {SIZES.step}: use the plain body"
        )
    if keys.dtype.name not in STORED:
        raise ValueError(f"the cache is {keys.dtype}; the kernels take {', '.join(STORED)}")
    if len(scales) != (2 if keys.dtype == jnp.int8 else 0):
        raise ValueError(f"a cache of {keys.dtype} came with {len(scales)} arrays of scales")
    for scale in scales:
        require(scale, keys.shape[:3], "float32", "a scale")


def require(array: Array, shape: tuple[int, ...], dtype: str, name: str) -> None:
    """Raise ValueError unless the array has this shape and dtype; `name` is for the message."""
    if array.shape != shape or array.dtype.name != dtype:
        raise ValueError(
            f"{name} is {array.dtype} {list(array.shape)}; {dtype} {list(shape)} expected"
        )


def require_axes(array: Array, axes: str, name: str) -> None:
    """Raise ValueError unless the array has as many axes as `axes` has words.

    `axes` has the names of the axes, separated by spaces; `name` is the name of the array. Both are
    shown in the message.
    """
    if array.ndim != len(axes.split()):
        raise ValueError(f"{name} is {list(array.shape)}; [{axes}] expected")
