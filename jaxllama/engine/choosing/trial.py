"""A trial: whether a sampler keeps the shapes of its socket, before any program is compiled.

Called by the bank for every installed sampler. Traces one row abstractly; computes nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.engine.choosing.rows import Rows, context
from jaxllama.errors import BrokenPlugin
from jaxllama.sampling import NO_TOKEN, Adjuster, Candidates, Chosen, Filter, Sampler, Shaper
from jaxllama.shapes import Array


def try_sampler(name: str, row: Sampler, *, vocab: int, candidates: int) -> None:
    """Raise BrokenPlugin unless the sampler traces and returns what its socket says."""

    def call(sampler: Sampler) -> Array:
        if isinstance(sampler, Adjuster | Shaper):
            return sampler(jnp.zeros(vocab, jnp.float32), context(blank_row(name), name))
        assert isinstance(sampler, Filter)
        return sampler(blank_candidates(candidates), context(blank_row(name), name))

    def observe(sampler: Sampler) -> Sampler:
        certain = jnp.float32(1.0)
        return sampler.observe(Chosen(jnp.int32(0), jnp.float32(0.0), certain, certain))

    is_filter = isinstance(row, Filter)
    expected = np.zeros(candidates, np.bool_) if is_filter else np.zeros(vocab, np.float32)
    expect(f"sampler {name!r}", traced(name, call, row), expected)
    if isinstance(row, Adjuster) and row.held_only:
        # As many logits as its row has tokens: one that knows the vocabulary does not fit.
        few = jnp.zeros(blank_row(name).tokens.shape, jnp.float32)
        made = traced(name, lambda one: one(few, context(blank_row(name), name)), row)
        expect(f"sampler {name!r}, shown {len(few)} tokens,", made, few)
    expect(f"observe() of sampler {name!r}", traced(name, observe, row), row)


def traced(name: str, call: Any, row: Sampler) -> Any:
    """The shapes `call` returns for one row, or BrokenPlugin with the first line of why not."""
    try:
        return jax.eval_shape(call, row)
    except Exception as error:  # a plugin may raise anything while it is traced
        why = str(error).partition("\n")[0]
        raise BrokenPlugin(
            f"sampler {name!r} cannot be compiled: {type(error).__name__}: {why}"
        ) from error


def expect(what: str, made: Any, expected: Any) -> None:
    """Raise BrokenPlugin unless two trees of shapes agree."""
    # As text: JAX 0.10 finds two dataclasses with like fields equal.
    if str(jax.tree.structure(made)) != str(jax.tree.structure(expected)):
        raise BrokenPlugin(f"{what} returns {made!r}; expected the like of {expected!r}")
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise BrokenPlugin(
                f"{what} returns {one.dtype}{list(one.shape)}; "
                f"expected {other.dtype}{list(other.shape)}"
            )


def blank_row(name: str) -> Rows:
    """One row of a batch, as small as a row can be; its chance is made: tracing that takes long."""
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
    """As many equal candidates."""
    logits = jnp.zeros(count, jnp.float32)
    ids, nothing, size = jnp.arange(count, dtype=jnp.int32), jnp.float32(0.0), jnp.int32(count)
    return Candidates(ids, logits, logits, nothing, nothing, size)
