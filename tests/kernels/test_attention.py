"""The C++ attention: what it means, that a row has the same bits everywhere, what it refuses."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxllama.config import KEY_BLOCK
from jaxllama.kernels import storage
from jaxllama.kernels.body import PromptSpan
from jaxllama.kernels.cpu import library
from jaxllama.kernels.cpu.attention import attend_prompt, attend_step
from jaxllama.kernels.plain import attention as reference
from tests.support import usual_options

pytestmark = pytest.mark.skipif(
    not library.available(), reason=library.why_not() or "kernels are there"
)

BODIES = ("portable", "avx2", "avx512", "amx")
DTYPES = ("uint16", "float16", "float32", "int8")


class Shape(NamedTuple):
    """Sizes of a case: slots, key heads, queries per key head, head size, columns."""

    slots: int
    kv_heads: int
    group: int
    size: int
    columns: int
    window: int | None = None

    @property
    def width(self):
        return (self.group + 2) * self.kv_heads * self.size


SHAPES = (
    Shape(4, 3, 3, 64, 700),
    Shape(3, 1, 1, 32, 17),
    Shape(2, 2, 4, 80, 530, window=37),
    Shape(3, 1, 7, 96, 300, window=300),
    Shape(2, 2, 1, 128, 257),
    Shape(2, 1, 16, 256, 100),
    Shape(2, 1, 5, 48, 600, window=256),
)
# Every dtype with the default model's heads, two with every other shape.
CASES = [(SHAPES[0], dtype) for dtype in DTYPES] + [
    (shape, dtype) for i, shape in enumerate(SHAPES[1:]) for dtype in DTYPES[i % 2 :: 2]
]


@pytest.fixture(params=BODIES)
def body(request):
    """Every body this processor can run, in turn."""
    before = library.isa()
    if not library.force_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    library.force_isa(before)


@pytest.fixture
def threads():
    """Sets the number of threads, for this test only."""
    before = library.threads()
    yield library.set_threads
    library.set_threads(before)


def distance(one, other):
    """Root of the mean squared difference; the numbers compared are about 1 in size."""
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64).reshape(one.shape)
    return np.sqrt(np.mean(difference**2))


def tolerance(body, dtype):
    """Query and weights are rounded to bfloat16 where the cache is that narrow; with AVX-512."""
    return 2e-3 if body in ("avx512", "amx") and dtype in ("uint16", "int8") else 2e-6


def prompt_tolerance(body, shape, dtype):
    """In the tiles of AMX all is rounded to bfloat16; not with float32, or some head sizes."""
    in_tiles = body == "amx" and dtype != "float32" and shape.size % 32 == 0
    return 4e-3 if in_tiles else tolerance(body, dtype)


def projections(shape, rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, shape.width), dtype=np.float32)


def turn_of(shape, position):
    angles = np.asarray(position)[:, None] * 10000.0 ** -(
        np.arange(0, shape.size, 2)[None] / shape.size
    )
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def quantised(x):
    """Whole numbers and one scale per column and head."""
    scale = np.abs(x).max(-1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 1e-37, np.float32(1) / scale, np.float32(0))
    return np.rint(x * inverse[..., None]).astype(np.int8), scale


def stored(x, dtype):
    """One side of a cache: its numbers, and its scales if it has some."""
    if dtype == "int8":
        return quantised(np.asarray(x))
    return (np.asarray(storage.narrow(jnp.asarray(x), jnp.dtype(dtype))),)


def filled_cache(shape, dtype, seed=1):
    """(keys, values) or (keys, values, key scales, value scales) of random numbers."""
    rng = np.random.default_rng(seed)
    size = (shape.slots, shape.kv_heads, shape.columns, shape.size)
    sides = [stored(rng.standard_normal(size, dtype=np.float32), dtype) for _ in range(2)]
    return tuple(jnp.asarray(part) for parts in zip(*sides, strict=True) for part in parts)


def plain_numbers(cache):
    """Keys and values as float32, padded to what the plain body takes."""
    keys, values, *scales = cache
    sides = [np.asarray(storage.widen(jnp.asarray(side))) for side in (keys, values)]
    if scales:
        sides = [side * np.asarray(s)[..., None] for side, s in zip(sides, scales, strict=True)]
    spare = -keys.shape[2] % KEY_BLOCK
    return [jnp.pad(side, ((0, 0), (0, 0), (0, spare), (0, 0))) for side in sides]


def split(shape, qkv, turn):
    """Rotated queries and keys, and values, each [rows, heads, size]."""
    heads = np.asarray(qkv).reshape(len(qkv), -1, shape.size)
    queries = shape.group * shape.kv_heads
    q, k, v = np.split(heads, [queries, queries + shape.kv_heads], axis=1)
    return rotated(q, turn), rotated(k, turn), v


def rotated(x, turn):
    """Turned by position, every product rounded; a pair lies half a head apart."""
    cos, sin = (table[:, None] for table in turn)
    one, two = np.split(x, 2, axis=-1)
    return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


def with_columns(cache, k, v, slot, column):
    """The cache with k, v [rows, heads, size] at (slot, column) of each row."""
    dtype = cache[0].dtype.name
    parts = [p for pair in zip(stored(k, dtype), stored(v, dtype), strict=True) for p in pair]
    changed = [np.array(side) for side in cache]
    for side, new in zip(changed, parts, strict=True):
        side[slot, :, column] = new
    return tuple(changed)


run_step = jax.jit(attend_step, static_argnums=5)
run_prompt = jax.jit(attend_prompt, static_argnums=4)


def step(shape, cache, position, active=None, seed=0, qkv=None):
    qkv = projections(shape, shape.slots, seed) if qkv is None else qkv
    active = np.ones(shape.slots, bool) if active is None else np.asarray(active)
    position = np.asarray(position, np.int32)
    return run_step(qkv, turn_of(shape, position), cache, position, active, shape.window)


def prompt(shape, cache, qkv, slot, start, rows=None):
    turn = turn_of(shape, start + np.arange(len(qkv)))
    rows = len(qkv) if rows is None else rows
    place = PromptSpan(*(jnp.int32(number) for number in (slot, start, rows)))
    return run_prompt(qkv, turn, cache, place, shape.window)


def assert_same(one, other):
    """Equal bit for bit, NaN included."""
    sides = [[np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (one, other)]
    for a, b in zip(*sides, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def places(shape):
    """The first column, the last, the edges of a block, and one somewhere."""
    wanted = [shape.columns - 1, 0, 255, 256]
    return [min(column, shape.columns - 1) for column in wanted][: shape.slots]


@functools.partial(jax.jit, static_argnums=4)
def attend_plainly(q, keys, values, position, window):
    """The plain body over one cache row per query row."""

    def read(block):
        cut = [lax.dynamic_slice_in_dim(x, block * KEY_BLOCK, KEY_BLOCK, 2) for x in (keys, values)]
        return tuple(cut)

    return reference.attend_blocks(q, read, position, window, None)


def plain_attention(shape, q, cache, slots, position):
    """Row i of `q` over cache row slots[i] up to position[i]."""
    keys, values = (side[slots] for side in plain_numbers(cache))
    return attend_plainly(q, keys, values, position, shape.window)


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_step_means_what_the_plain_body_means(body, shape, dtype):
    cache, position = filled_cache(shape, dtype), np.asarray(places(shape), np.int32)
    out, after = step(shape, cache, position)
    q, k, v = split(shape, projections(shape, shape.slots), turn_of(shape, position))
    slots = np.arange(shape.slots)
    expected = with_columns(cache, k, v, slots, position)
    assert_same(after, expected)
    plain = plain_attention(shape, q, expected, slots, position)
    assert distance(out, plain) < tolerance(body, dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_prompt_means_what_the_plain_body_means(body, shape, dtype):
    cache, start = filled_cache(shape, dtype), shape.columns // 3
    rows = min(40, shape.columns - start)
    qkv = projections(shape, 43)
    out, after = prompt(shape, cache, qkv, 1, start, rows)
    position = start + np.arange(43, dtype=np.int32)
    q, k, v = (part[:rows] for part in split(shape, qkv, turn_of(shape, position)))
    slots, position = np.ones(rows, int), position[:rows]
    expected = with_columns(cache, k, v, slots, position)
    assert_same(after, expected)
    plain = plain_attention(shape, q, expected, slots, position)
    assert distance(out[:rows], plain) < prompt_tolerance(body, shape, dtype)
    assert not np.any(np.asarray(out[rows:]))


@pytest.mark.usefixtures("body")
def test_tolerance_tells_another_window():
    shape = SHAPES[2]
    cache = filled_cache(shape, "float32")
    right, _ = step(shape, cache, places(shape))
    wrong, _ = step(shape._replace(window=36), cache, places(shape))
    assert distance(right, wrong) > 3 * tolerance("avx512", "int8")


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_row_has_the_same_bits_as_a_step_and_in_a_prompt(body, shape, dtype):
    if body == "amx":
        pytest.skip("prompts have an arithmetic of their own")
    start = max(min(235, shape.columns - 40), 0)
    rows = min(shape.columns - start, 40)
    qkv, cache = projections(shape, rows), filled_cache(shape, dtype)
    out, after = prompt(shape, cache, qkv, 1, start)
    stepped = []
    for row in range(rows):
        crowd = projections(shape, shape.slots, seed=row + 5)
        crowd[1] = qkv[row]
        position = np.full(shape.slots, start + row)
        result, cache = step(shape, cache, position, seed=row, qkv=crowd)
        stepped.append(np.asarray(result[1]))
    assert_same(out, np.stack(stepped))
    assert_same([side[1] for side in after], [side[1] for side in cache])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("body")
def test_prompt_has_the_same_bits_in_any_chunks(dtype):
    shape = Shape(2, 3, 3, 64, 640)
    qkv, cache = projections(shape, 500), filled_cache(shape, dtype)
    whole = prompt(shape, cache, qkv, 0, 90)
    parts, at = [], 0
    for rows in (1, 150, 9, 340):
        chunk = np.concatenate([qkv[at : at + rows], projections(shape, 3, seed=9)])
        out, cache = prompt(shape, cache, chunk, 0, 90 + at, rows)
        parts.append(np.asarray(out[:rows]))
        at += rows
    assert_same(whole, (np.concatenate(parts), cache))


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.usefixtures("body")
def test_threads_do_not_change_a_bit(threads, count):
    shape = Shape(2, 1, 3, 64, 4000)
    cache, qkv = filled_cache(shape, "uint16"), projections(shape, 200)
    threads(2)
    stepped, prompted = step(shape, cache, [3999, 1200]), prompt(shape, cache, qkv, 0, 3000)
    threads(count)
    assert_same(stepped, step(shape, cache, [3999, 1200]))
    assert_same(prompted, prompt(shape, cache, qkv, 0, 3000))


@pytest.mark.usefixtures("body")
def test_neighbours_do_not_change_a_bit():
    shape = Shape(3, 2, 3, 64, 600)
    cache = filled_cache(shape, "float16")
    alone, _ = step(shape, cache, [5, 555, 7], active=[False, True, False])
    noisy = tuple(side.at[jnp.array([0, 2])].set(jnp.nan) for side in cache)
    crowd, _ = step(shape, noisy, [0, 555, 599])
    assert_same(alone[1], crowd[1])
    assert np.isnan(crowd[2]).all()


@pytest.mark.usefixtures("body")
def test_what_lies_past_a_row_does_not_matter():
    shape = Shape(2, 1, 3, 64, 600)
    for dtype, poison in (("float32", np.nan), ("uint16", 0x7FFF), ("int8", -128)):
        cache = filled_cache(shape, dtype)
        dirty = [side.at[:, :, 261:].set(poison) for side in cache[:2]]
        dirty += [side.at[:, :, 261:].set(jnp.nan) for side in cache[2:]]
        clean, _ = step(shape, cache, [260, 3])
        assert_same(clean, step(shape, tuple(dirty), [260, 3])[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("body")
def test_what_a_window_leaves_behind_does_not_matter(dtype):
    shape = Shape(2, 1, 3, 64, 600, window=21)
    cache = filled_cache(shape, dtype)
    poison = {"uint16": 0x7FFF, "int8": -128}.get(dtype, np.nan)
    dirty = [side.at[:, :, :280].set(poison) for side in cache[:2]]
    dirty += [side.at[:, :, :280].set(jnp.nan) for side in cache[2:]]
    assert_same(step(shape, cache, [300, 599])[0], step(shape, tuple(dirty), [300, 599])[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("body")
def test_rows_of_a_prompt_do_not_see_the_future(dtype):
    shape = Shape(1, 1, 3, 64, 64)
    cache, qkv = filled_cache(shape, dtype), projections(shape, 20)
    out, _ = prompt(shape, cache, qkv, 0, 0)
    later = qkv.copy()
    later[7:] = np.nan
    poisoned, _ = prompt(shape, cache, later, 0, 0)
    assert_same(out[:7], poisoned[:7])
    assert np.isnan(poisoned[7:]).all()


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
@pytest.mark.usefixtures("body")
def test_several_tokens_of_a_slot_have_the_same_bits_in_one_step_and_in_several(shape, dtype):
    count, first = 3, np.asarray(places(shape), np.int32)
    position = np.minimum(first, shape.columns - count) + np.arange(count, dtype=np.int32)[:, None]
    active = np.ones((count, shape.slots), bool)
    active[1:, 0] = active[2, 1] = False  # slots with one token, and with two
    qkv, after = projections(shape, count * shape.slots), filled_cache(shape, dtype)
    turn = turn_of(shape, position.reshape(-1))
    given = (position.reshape(-1), active.reshape(-1), shape.window)
    together = run_step(qkv, turn, after, *given)
    outs = []
    for place in range(count):
        rows = qkv[place * shape.slots :][: shape.slots]
        out, after = step(shape, after, position[place], active[place], qkv=rows)
        outs.append(np.asarray(out))
    assert_same(together, (np.concatenate(outs), after))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("body")
def test_inactive_rows_touch_nothing_and_give_zeros(dtype):
    shape = Shape(3, 2, 2, 32, 50)
    cache = filled_cache(shape, dtype)
    out, after = step(shape, cache, [4, -7, 12345], active=[True, False, False])
    assert np.any(np.asarray(out[0])) and not np.any(np.asarray(out[1:]))
    for side, old in zip(after, cache, strict=True):
        changed = np.array(side != old)
        assert changed[0, :, 4].any() and not changed[1:].any()
        changed[0, :, 4] = False
        assert not changed.any()


@pytest.mark.usefixtures("body")
def test_prompt_without_rows_touches_nothing():
    shape = Shape(2, 2, 2, 32, 50)
    cache = filled_cache(shape, "float32")
    out, after = prompt(shape, cache, projections(shape, 8), 1, 50, 0)
    assert not np.any(np.asarray(out))
    assert_same(cache, after)


@pytest.mark.usefixtures("body")
def test_every_kind_of_number_is_stored_to_nearest():
    shape = Shape(1, 1, 1, 64, 4)
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, (150, 64), dtype=np.uint64).astype(np.uint32)
    bits[:, :16] = (bits[:, :16] & 0x8FFFFFFF) | 0x30000000  # as many near float16's smallest
    for dtype in ("uint16", "float16", "float32"):
        cache = filled_cache(shape, dtype)
        numbers = bits.view(np.float32)
        for value in np.where(np.abs(numbers) < 1e-37, np.float32(0), numbers):
            qkv = np.zeros((1, shape.width), np.float32)
            qkv[0, -64:] = value
            _, (_, values) = step(shape, cache, [2], qkv=qkv)
            with np.errstate(over="ignore"):
                (expected,) = stored(value, dtype)
            left, right = (storage.widen(jnp.asarray(x)) for x in (values[0, 0, 2], expected))
            np.testing.assert_array_equal(left, right)


@pytest.mark.usefixtures("body")
def test_int8_column_of_zeros_has_scale_zero():
    shape = Shape(1, 1, 1, 32, 4)
    out, (_, values, _, scales) = step(
        shape, filled_cache(shape, "int8"), [0], qkv=np.zeros((1, shape.width), np.float32)
    )
    assert not np.any(np.asarray(values[0, 0, 0])) and scales[0, 0, 0] == 0
    assert not np.any(np.asarray(out))


def cache_sized_copies(shape, step_of):
    """How many cache-sized copies the compiled loop of steps contains."""
    cache = filled_cache(shape, "uint16")
    with usual_options():
        compiled = jax.jit(step_of, donate_argnums=0).lower(cache).compile()
    size = f"u16[{shape.slots},{shape.kv_heads},{shape.columns},{shape.size}]"
    return sum(
        size in line.split("copy(")[0]
        for line in compiled.as_text().splitlines()
        if "copy(" in line
    )


def loop_of_steps(shape, keep):
    """Steps in a loop; one that keeps the old cache alive where asked."""
    qkv, active = jnp.asarray(projections(shape, shape.slots)), jnp.ones(shape.slots, bool)
    turn = tuple(jnp.asarray(table) for table in turn_of(shape, np.zeros(shape.slots)))

    def loop(cache):
        def one(index, carry):
            cache, total = carry
            position = jnp.full(shape.slots, index, jnp.int32)
            out, after = attend_step(qkv, turn, cache, position, active)
            return after, total + out.sum() + (cache[0][0, 0, 5, 0] if keep else 0)

        return lax.fori_loop(0, 4, one, (cache, 0.0))

    return loop


def test_cache_is_updated_in_place_inside_a_loop():
    shape = Shape(2, 2, 2, 32, 64)
    assert cache_sized_copies(shape, loop_of_steps(shape, keep=False)) == 0


def test_copies_are_counted():
    shape = Shape(2, 2, 2, 32, 64)

    def kept(cache):
        out, after = loop_of_steps(shape, keep=False)(cache)
        return out, after, cache[0] + 0

    assert cache_sized_copies(shape, kept) > 0


def test_cache_stays_where_it_is_in_memory():
    shape = Shape(2, 2, 2, 32, 64)
    cache = filled_cache(shape, "uint16")
    before = [side.unsafe_buffer_pointer() for side in cache]
    run = jax.jit(loop_of_steps(shape, keep=False), donate_argnums=0)
    after, _ = run(cache)
    assert [side.unsafe_buffer_pointer() for side in after] == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 24}, "head size is 24"),
        ({"size": 272}, "head size is 272"),
        ({"size": 40}, "head size is 40"),
        ({"dtype": jnp.int16}, "cache is int16"),
        ({"width": 100}, "do not hold a whole group"),
        ({"width": 2 * 2 * 32}, "do not hold a whole group"),
        ({"width": 7 * 32}, "do not hold a whole group"),
        ({"position": jnp.zeros(2, jnp.int16)}, "position is int16"),
        ({"active": jnp.zeros(2, jnp.int32)}, "active is int32"),
        ({"rows": 3}, "there are 3 rows"),
        ({"window": 0}, "window is 0"),
        ({"dtype": jnp.int8}, "0 arrays of scales"),
        ({"turn": 8}, "cos is float32"),
    ],
    ids=str,
)
def test_what_has_no_kernel_is_refused_while_tracing(change, said):
    size, rows = change.get("size", 32), change.get("rows", 2)
    cache = (jnp.zeros((2, 2, 8, size), change.get("dtype", jnp.float32)),) * 2
    qkv = jnp.zeros((rows, change.get("width", 6 * size)))
    turn = (jnp.zeros((rows, change.get("turn", size // 2))),) * 2
    position = change.get("position", jnp.zeros(2, jnp.int32))
    active = change.get("active", jnp.zeros(2, bool))
    unhooked = inspect.unwrap(attend_step)  # users run without the checks of annotations
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda: unhooked(qkv, turn, cache, position, active, change.get("window")))


@pytest.mark.parametrize("position", [-1, 50])
def test_position_outside_the_cache_is_an_error(position):
    shape = Shape(2, 1, 1, 32, 50)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"position {position} lies outside"):
        jax.block_until_ready(step(shape, filled_cache(shape, "float32"), [0, position]))


@pytest.mark.parametrize("place", [(2, 0, 8), (-1, 0, 8), (0, 43, 8), (0, -1, 8), (0, 0, 9)])
def test_prompt_outside_the_cache_is_an_error(place):
    shape = Shape(2, 1, 1, 32, 50)
    cache, (slot, start, rows) = filled_cache(shape, "float32"), place
    with pytest.raises(jax.errors.JaxRuntimeError, match="lie outside the cache"):
        jax.block_until_ready(prompt(shape, cache, projections(shape, 8), slot, start, rows))


@pytest.fixture
def steps_match_prompts():
    """The best body whose prompts and steps have the same bits."""
    before = library.isa()
    if library.prompts_use_amx():
        library.force_isa("avx512")
    yield
    library.force_isa(before)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("steps_match_prompts")
def test_random_shapes_keep_the_bit_rule(seed):
    rng = np.random.default_rng(seed)
    window = int(rng.integers(1, 400)) if seed % 2 else None
    sizes = rng.integers((1, 1, 1, 2, 1), (4, 4, 9, 17, 600))
    shape = Shape(*(int(n) for n in sizes), window=window)
    shape = shape._replace(size=16 * shape.size)
    slot, start = int(rng.integers(shape.slots)), int(rng.integers(shape.columns))
    rows = int(rng.integers(1, min(shape.columns - start, 30) + 1))
    cache = filled_cache(shape, DTYPES[seed % len(DTYPES)])
    qkv = projections(shape, rows)
    out, after = prompt(shape, cache, qkv, slot, start)
    for row in range(rows):
        crowd = np.repeat(qkv[row : row + 1], shape.slots, axis=0)
        active = np.arange(shape.slots) == slot
        position = np.full(shape.slots, start + row)
        result, cache = step(shape, cache, position, active, qkv=crowd)
        assert_same(out[row], result[slot])
    assert_same(after, cache)


@pytest.mark.parametrize("seed", range(12))
def test_random_prompts_keep_the_bit_rule_in_any_chunks(body, seed):
    del body
    rng = np.random.default_rng(seed)
    window = int(rng.integers(1, 400)) if seed % 2 else None
    sizes = rng.integers((1, 1, 1, 1, 200), (3, 4, 9, 9, 600))
    shape = Shape(*(int(n) for n in sizes), window=window)
    shape = shape._replace(size=32 * shape.size)
    start = int(rng.integers(shape.columns // 2))
    rows = int(rng.integers(2, min(shape.columns - start, 90) + 1))
    cache = filled_cache(shape, DTYPES[seed % len(DTYPES)])
    qkv = projections(shape, rows)
    out, after = prompt(shape, cache, qkv, 0, start)
    cut = int(rng.integers(1, rows))
    first, cache = prompt(shape, cache, qkv[:cut], 0, start)
    second, cache = prompt(shape, cache, qkv[cut:], 0, start + cut)
    assert_same(out, np.concatenate([first, second]))
    assert_same(after, cache)
