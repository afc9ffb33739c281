"""The machine of expressions: runs a program of expression_program.py on all tokens of a row.

Used by the samplers `expression` and `logit_expression` inside the decode step. The program is
data. Each instruction is one operation on an array with a number for every token; conditions are 0
and 1. Rows are computed one after the other, so that a row runs only its own instructions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxllama.sampling import NO_TOKEN, Context
from jaxllama.shapes import Array, Float, Int
from jaxllama_samplers.expression_program import FIELDS, HEAD, PLACES
from jaxllama_samplers.expression_words import Op

Load = Callable[[], Array]  # computes a number for every token, or one for the row
Make = Callable[..., Array]

ARGUMENTS = 3  # of an instruction, at most
OF_ONE: Mapping[Op, Make] = {
    Op.NOT: lambda a: 1 - a,
    Op.ABS: jnp.abs,
    Op.FLOOR: jnp.floor,
    Op.SQRT: jnp.sqrt,
    Op.NEGATE: jnp.negative,
}
OF_TWO: Mapping[Op, Make] = {
    Op.ADD: jnp.add,
    Op.SUBTRACT: jnp.subtract,
    Op.MULTIPLY: jnp.multiply,
    Op.DIVIDE: jnp.divide,
    Op.MODULO: lambda a, b: a - jnp.floor(a / b) * b,
    Op.LESS: jnp.less,
    Op.LESS_EQUAL: jnp.less_equal,
    Op.EQUAL: jnp.equal,
    Op.UNEQUAL: jnp.not_equal,
    Op.AND: jnp.minimum,
    Op.OR: jnp.maximum,
    Op.MIN: jnp.minimum,
    Op.MAX: jnp.maximum,
}
SLOW = (Op.EXP, Op.LOG, Op.POWER)
OCCURRENCES = (Op.COUNT, Op.COUNT_ANSWER, Op.SINCE, Op.ENDS)


def row_by_row(compute: Callable[..., Array]) -> Callable[..., Array]:
    """Wrap `compute`, a function of one row, so that `jax.vmap` runs it row after row.

    A branch on a number of the row then stays a branch. Computed for all rows at once, it would
    become a selection: every row would run all instructions that exist.
    """
    one = custom_vmap(compute)

    @one.def_vmap
    def rule(rows: int, batched: Any, *args: Any) -> tuple[Array, bool]:
        def each(leaf: Array, is_batched: bool) -> Array:
            return leaf if is_batched else jnp.broadcast_to(leaf, (rows, *leaf.shape))

        return jax.lax.map(
            lambda row: compute(*row), jax.tree.map(each, args, tuple(batched))
        ), True

    return jax.jit(one, inline=True)  # inline: within a program, the same as without


def run(
    program: Float[Array, " W"],
    count: Int[Array, ""],
    loads: Sequence[Mapping[Op, Load]],
    occurrences: Callable[[Array], Array],
    size: int,
) -> Float[Array, "K N"]:
    """Run a program on the `size` tokens of one row; return all registers, [register, token].

    The first `count` instructions of `program` are run; its result is in register 0. `loads` map
    names to functions that compute them (names in the same mapping are computed together);
    `occurrences(op)` computes the names in OCCURRENCES.
    """
    steps = program[HEAD:].reshape(-1, FIELDS)
    branch_of, branches = table(loads, occurrences, size)

    def step(index: Array | int, places: Array) -> Array:
        op, to = steps[index, 0].astype(jnp.int32), steps[index, 1].astype(jnp.int32)
        arguments = jax.lax.dynamic_slice_in_dim(places, to, ARGUMENTS)
        made = jax.lax.switch(branch_of[op], branches, op, steps[index, 2], *arguments)
        return jax.lax.dynamic_update_slice_in_dim(places, made[None], to, axis=0)

    places = jnp.zeros((PLACES + ARGUMENTS - 1, size), jnp.float32)
    return jax.lax.fori_loop(0, count, step, places)


def table(
    loads: Sequence[Mapping[Op, Load]], occurrences: Callable[[Array], Array], size: int
) -> tuple[Int[Array, " O"], list[Make]]:
    """Return the number of each operation's branch, and the branches of a `jax.lax.switch`.

    A branch computes a group of operations for `size` tokens and selects one of the results: few
    branches compile faster. `loads` and `occurrences` as in `run`.
    """

    def quick(op: Array, value: Array, a: Array, b: Array, c: Array) -> Array:
        of_one = {each: make(a) for each, make in OF_ONE.items()}
        of_two = {each: make(a, b) for each, make in OF_TWO.items()}
        chosen = jnp.where(a != 0, b, c)
        return select(op, {Op.CONSTANT: value, **of_one, **of_two, Op.CHOOSE: chosen}, size)

    def slow(op: Array, value: Array, a: Array, b: Array, c: Array) -> Array:
        del value, c
        return exponential(op, a, b)

    def occurrence(op: Array, value: Array, a: Array, b: Array, c: Array) -> Array:
        del value, a, b, c
        return occurrences(op)

    def loading(group: Mapping[Op, Load]) -> Make:
        def load(op: Array, value: Array, a: Array, b: Array, c: Array) -> Array:
            del value, a, b, c
            return select(op, {each: make() for each, make in group.items()}, size)

        return load

    groups: list[tuple[Iterable[Op], Make]] = [
        ((Op.CONSTANT, *OF_ONE, *OF_TWO, Op.CHOOSE), quick),
        (SLOW, slow),
        (OCCURRENCES, occurrence),
        *((tuple(group), loading(group)) for group in loads),
    ]
    place_of = {int(each): place for place, (ops, _) in enumerate(groups) for each in ops}
    branch_of = jnp.array([place_of.get(op, 0) for op in range(max(Op) + 1)])
    return branch_of, [make for _, make in groups]


def select(op: Array, found: Mapping[Op, Array], size: int) -> Array:
    """Return `found[op]` for an operation `op` known only at run time, as an array of `size`.

    `found` maps operations to their results: a number for each token, or one for all.
    """
    values = [jnp.broadcast_to(value, (size,)).astype(jnp.float32) for value in found.values()]
    if len(values) == 1:
        return values[0]
    return jnp.select([op == each for each in found], values)


def exponential(op: Array, a: Array, b: Array) -> Array:
    """Return exp(a), log(a) or a ** b, as the operation `op` says, for every token.

    One exponential and one logarithm are computed for all three operations.
    """
    log = jnp.log(jnp.abs(a))
    power = jnp.exp(jnp.where(op == Op.EXP, a, jnp.where(b == 0, 0.0, b * log)))
    is_whole = jnp.floor(b) == b
    is_odd = is_whole & (b - 2 * jnp.floor(b / 2) == 1)
    signed = jnp.where(a < 0, jnp.where(is_whole, jnp.where(is_odd, -power, power), jnp.nan), power)
    real_log = jnp.where(a < 0, jnp.nan, log)
    return jnp.where(op == Op.EXP, power, jnp.where(op == Op.LOG, real_log, signed))


def facts_of(context: Context) -> dict[Op, Load]:
    """Map each name with one number per row, independent of the logits, to its function."""
    return {
        Op.POSITION: lambda: context.generated,
        Op.LENGTH: lambda: context.length,
        Op.PROMPT_LENGTH: lambda: context.prompt,
        Op.TEMPERATURE: lambda: context.temperature,
        Op.CHANCE: lambda: context.chance,
    }


def occurrences_in(
    context: Context, place_of: Callable[[Array], Array], size: int
) -> Callable[[Array], Array]:
    """Return a function that computes one of the names in OCCURRENCES for each of `size` tokens.

    Its argument is the operation that stands for the name. `place_of` maps token ids to indices
    among the `size` tokens; an id that is not among them gives `size`.
    """

    def computed(op: Array) -> Array:
        width = context.tokens.shape[0]
        index = jnp.arange(width, dtype=jnp.int32)
        known = (index < context.length) & (op != Op.ENDS)
        counted = known & ((index >= context.prompt) | (op != Op.COUNT_ANSWER))
        ends = (context.stop_ids != NO_TOKEN) & (op == Op.ENDS)
        places = place_of(jnp.concatenate([context.tokens, context.stop_ids]))
        places = jnp.where(jnp.concatenate([counted, ends]), places, size)
        count = jnp.zeros(size, jnp.float32).at[places].add(1.0, mode="drop")
        newest = jnp.full(size, -1, jnp.int32).at[places[:width]].max(index, mode="drop")
        since = jnp.where(newest < 0, jnp.inf, context.length - newest)
        return jnp.where(
            op == Op.SINCE, since, jnp.where(op == Op.ENDS, jnp.minimum(count, 1), count)
        )

    return computed
