"""Trial: check that a sampler returns the shapes of its kind, before any program is compiled.

Called by the bank for every installed sampler. Traces one row abstractly; computes nothing.
"""

import functools
import warnings
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import mistakes
from jaxllama.engine.choosing.rows import Rows, context
from jaxllama.errors import BrokenPlugin
from jaxllama.sampling import NO_TOKEN, Adjuster, Candidates, Chosen, Filter, Sampler, Shaper
from jaxllama.shapes import Array

WIDE = (np.float64, np.int64)  # the default types of NumPy


def try_sampler(name: str, row: Sampler, *, vocab: int, candidates: int) -> None:
    """Raise BrokenPlugin unless JAX can trace the sampler and it returns the right shapes.

    `row` is the sampler with the values of one row. `vocab` is the number of tokens of the model,
    `candidates` the number of tokens that a filter gets. A sampler that passed is not traced again
    with the same name and sizes.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.result_type(x)), row)
    trace_all(name, shapes, vocab=vocab, candidates=candidates)


@functools.lru_cache(maxsize=256)  # a failure is raised and not kept
def trace_all(name: str, row: Sampler, *, vocab: int, candidates: int) -> None:
    """Trace `__call__` and `observe` of a sampler; raise BrokenPlugin for an error.

    A wrong shape or type of a result is an error, too. `row` is the sampler with shapes and types
    in place of values. `vocab` is the number of tokens of the model, `candidates` the number of
    tokens that a filter gets.
    """

    def call(sampler: Sampler) -> Array:
        if isinstance(sampler, Adjuster | Shaper):
            return sampler(jnp.zeros(vocab, jnp.float32), context(blank_row(name), name))
        assert isinstance(sampler, Filter)
        return sampler(blank_candidates(candidates), context(blank_row(name), name))

    def observe(sampler: Sampler) -> Sampler:
        certain = jnp.float32(1.0)
        return sampler.observe(Chosen(jnp.int32(0), jnp.float32(0.0), certain, certain))

    refuse_incomplete(name, type(row))
    is_filter = isinstance(row, Filter)
    expected = np.zeros(candidates, np.bool_) if is_filter else np.zeros(vocab, np.float32)
    expect(f"sampler {name!r}", trace(name, call, row), expected, row)
    if isinstance(row, Adjuster) and row.held_only:
        # As many logits as the row has tokens: a sampler that expects the vocabulary fails here.
        few = jnp.zeros(blank_row(name).tokens.shape, jnp.float32)
        made = trace(name, lambda one: one(few, context(blank_row(name), name)), row)
        expect(f"sampler {name!r}, shown {len(few)} tokens,", made, few, row)
    expect_row(name, trace(name, observe, row), row)


def refuse_incomplete(name: str, kind: type[Sampler]) -> None:
    """Raise BrokenPlugin for a sampler without `__call__` or with its own random generator."""
    base = next((each for each in (Adjuster, Filter, Shaper) if issubclass(kind, each)), Sampler)
    if kind.__call__ is base.__call__:
        first = "best" if base is Filter else "logits"
        raise BrokenPlugin(
            f"sampler {name!r} has no __call__",
            where=mistakes.line_of(kind),
            hint=f"write def __call__(self, {first}, context)",
        )
    drawn = mistakes.own_random_number(kind)
    if drawn is not None:
        where, function = drawn
        raise BrokenPlugin(
            f"sampler {name!r}: {function} draws a random number once, when the step is compiled, "
            f"and every token of every request would get that number",
            where=where,
            hint="use context.chance, a new number in [0, 1) for each token, decided by the "
            "request's seed",
        )


def trace(name: str, call: Any, row: Sampler) -> Any:
    """Return the shapes and types of what `call` returns for one row, without computing it.

    `name` is the sampler's name for the message, `row` the sampler with shapes and types in place
    of values. Raises BrokenPlugin with line and cause if `call` fails.
    """
    made: list[Any] = []

    def kept(row: Sampler) -> Any:
        made.append(call(row))
        return made[-1]

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Explicitly requested dtype float64", UserWarning)
            shapes = jax.eval_shape(kept, row)
    except Exception as error:  # a plugin may raise anything while it is traced
        what = f"sampler {name!r} cannot be compiled"
        raise mistakes.explain(what, error, type(row).__module__) from error
    result = made[0] if made else None
    if isinstance(result, np.ndarray) and result.dtype in WIDE:  # JAX would narrow it silently
        raise BrokenPlugin(
            f"sampler {name!r} returns a NumPy array of {result.dtype}; expected an array of JAX",
            where=mistakes.line_of(type(row), "__call__"),
            hint=f"make it with jax.numpy, such as jnp.zeros, or write "
            f"jnp.asarray(array, jnp.{'bool_' if isinstance(row, Filter) else 'float32'})",
        )
    return shapes


def expect(what: str, made: Any, expected: Any, row: Sampler) -> None:
    """Raise BrokenPlugin unless `made` is an array with the shape and type of `expected`.

    `what` begins the message; `row` is the sampler that returned `made`.
    """
    expected_text = f"{expected.dtype}{list(expected.shape)}"
    is_array = hasattr(made, "shape") and hasattr(made, "dtype")
    if is_array and (made.shape, made.dtype) == (expected.shape, expected.dtype):
        return
    returned = f"{made.dtype}{list(made.shape)}" if is_array else name_returned(made)
    raise BrokenPlugin(
        f"{what} returns {returned}; expected {expected_text}",
        where=mistakes.line_of(type(row), "__call__"),
        hint=hint_for(made, expected, row) if is_array else "return one array from __call__",
    )


def hint_for(made: Any, expected: Any, row: Sampler) -> str:
    """Return a hint for a sampler's author: how to correct the array `made` that it returned.

    `expected` has the right shape and type; `row` is the sampler.
    """
    if made.shape != expected.shape:
        shown = "best.ids" if isinstance(row, Filter) else "logits"
        return f"return one number for each token, in the shape of `{shown}`"
    if isinstance(row, Filter):
        return "return a mask, which a comparison makes: best.p >= self.knob"
    if made.dtype == jnp.bool_:
        return "drop tokens with jnp.where(mask, logits, -jnp.inf)"
    return "compute in float32: end with .astype(logits.dtype)"


def name_returned(made: Any) -> str:
    """Name a returned value, `made`, for an error message: None, or its type."""
    return "None" if made is None else f"a {type(made).__name__}"


def expect_row(name: str, made: Any, row: Sampler) -> None:
    """Raise BrokenPlugin unless `made` is a sampler with the shapes and types of `row`.

    `made` is what `observe` of the sampler `name` returned for `row`.
    """
    where = mistakes.line_of(type(row), "observe")
    if type(made) is not type(row):
        raise BrokenPlugin(
            f"observe() of sampler {name!r} returns {name_returned(made)}; "
            f"expected a {type(row).__name__}",
            where=where,
            hint="return self, or dataclasses.replace(self, field=value)",
        )
    for field in fields(row):  # type: ignore[arg-type]
        pair = getattr(made, field.name), getattr(row, field.name)
        one, other = ([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in pair)
        if one != other:
            shown = [
                ", ".join(f"{d}{list(s)}" for s, d in each) or "nothing" for each in (one, other)
            ]
            raise BrokenPlugin(
                f"observe() of sampler {name!r} returns {shown[0]} as {field.name}; "
                f"expected {shown[1]}",
                where=where,
                hint="keep shape and type: state(start=0.0) holds fractions, state(start=0) "
                "whole numbers",
            )


def blank_row(name: str) -> Rows:
    """Make one row of 8 tokens, to trace the sampler called `name`.

    The row's random number is a constant, because this is faster to trace.
    """
    return Rows(
        tokens=jnp.zeros(8, jnp.int32),
        length=jnp.int32(1),
        prompt=jnp.int32(1),
        stop_ids=jnp.full(2, NO_TOKEN, jnp.int32),
        temperature=jnp.float32(1.0),
        temperature_last=jnp.bool_(False),
        seed=jnp.zeros(2, jnp.uint32),
        active=jnp.bool_(True),
        top_logprobs=jnp.int32(-1),
        chances={name: jnp.float32(0.5)},
    )


def blank_candidates(count: int) -> Candidates:
    """Make `count` candidates with equal logits, for tracing a filter."""
    logits = jnp.zeros(count, jnp.float32)
    ids, nothing, size = jnp.arange(count, dtype=jnp.int32), jnp.float32(0.0), jnp.int32(count)
    return Candidates(ids, logits, logits, nothing, nothing, size)
