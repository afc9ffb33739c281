"""Rows: what is known of every row of the batch, and what a sampler gets to see of its own.

Used by the bank and its survivors, inside the decode program. Knows no logits and no order.
"""

import functools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.engine.choosing import dice
from jaxllama.sampling import NO_TOKEN, Adjuster, Context, KnobSpec, Pairs, Sampler, knobs_of
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32

T = TypeVar("T")

ALL_OF_WORD = 2**32 - 1  # 32 tokens, all allowed


class Rows(NamedTuple):
    """What the bank may know about every row of the batch at this step."""

    tokens: Int32[Array, "S T"]  # prompt and generated tokens
    length: Int32[Array, " S"]  # how many of `tokens` count
    prompt: Int32[Array, " S"]
    stop_ids: Int32[Array, "S E"]  # padded with NO_TOKEN
    temperature: Float[Array, " S"]  # 0 = greedy
    temperature_last: Bool[Array, " S"]
    seed: UInt32[Array, "S 2"]  # raw threefry key; folded with `length` at each draw
    active: Bool[Array, " S"]
    top_logprobs: Int32[Array, " S"]  # -1: this row wants no log-probabilities
    allowed: UInt32[Array, "S W"] | None = None  # a bit per token; all set: no constraint
    chances: Mapping[str, Float[Array, " S"]] | None = None  # of samplers; see `with_chances`


def every_token(slots: int, vocab: int) -> UInt32[np.ndarray, "S W"]:
    """`Rows.allowed` where no row has a constraint."""
    return np.full((slots, -(-vocab // 32)), ALL_OF_WORD, np.uint32)


def context(row: Rows, name: str) -> Context:
    """What the sampler called `name` may know of one row (leaves without S)."""
    return Context(
        row.tokens,
        row.length,
        row.prompt,
        row.stop_ids,
        chance(row, name) if row.chances is None else row.chances[name],
        row.temperature,
        row.allowed,
    )


def chance(row: Rows, name: str | None = None) -> Float[Array, ""]:
    """One uniform number for one row: of the draw itself, or of the sampler called `name`.

    Depends on the row's seed and length alone, so neither a neighbour nor another installed
    sampler can change it.
    """
    key = key_of(row)
    return dice.uniform(key if name is None else dice.fold_in(key, code_of(name)))


def with_chances(rows: Rows, names: Sequence[str]) -> Rows:
    """The rows with the `chance` of every sampler, made at once: each by itself is long code."""
    if not names:
        return rows

    def of_row(row: Rows) -> dict[str, Float[Array, ""]]:
        key = key_of(row)
        codes = jnp.stack([code_of(name) for name in names])
        each = jax.vmap(lambda code: dice.uniform(dice.fold_in(key, code)))(codes)
        return dict(zip(names, each, strict=True))

    return rows._replace(chances=jax.vmap(of_row)(rows))


def key_of(row: Rows) -> dice.Words:
    """What the numbers of one row at this step are made of."""
    return dice.fold_in((row.seed[0], row.seed[1]), row.length)


def code_of(name: str) -> UInt32[Array, ""]:
    """What makes the numbers of the sampler called `name` its own."""
    return jnp.uint32(zlib.crc32(name.encode()))


def some(on: Iterable[Bool[Array, " S"]], rows: Rows) -> Bool[Array, " S"]:
    """Rows in which at least one is true."""
    return functools.reduce(jnp.logical_or, on, jnp.zeros_like(rows.active))


def is_warm(rows: Rows) -> Bool[Array, " S"]:
    """Rows whose token is drawn; the others take the likeliest."""
    return rows.temperature > 0


def is_asked(sampler: Sampler, rows: Rows) -> Bool[Array, " S"]:
    """Rows in which this sampler has something to do: by its knobs, or for their constraint."""
    if not (isinstance(sampler, Adjuster) and sampler.constrains):
        return switched_on(sampler)
    if rows.allowed is None:
        return jnp.zeros_like(rows.active)
    return jnp.any(rows.allowed != jnp.uint32(ALL_OF_WORD), axis=-1)


def switched_on(sampler: Sampler) -> Bool[Array, " S"]:
    """Rows in which some switch knob of this sampler differs from its `off`."""
    knobs = knobs_of(type(sampler)).items()
    return jnp.any(
        jnp.stack([is_set(getattr(sampler, name), spec) for name, spec in knobs if spec.switch]),
        axis=0,
    )


def is_set(leaf: Array | Pairs, spec: KnobSpec) -> Bool[Array, " S"]:
    """Rows in which this knob differs from its `off`."""
    if isinstance(leaf, Pairs):
        return jnp.any(leaf.ids != NO_TOKEN, axis=-1)
    differs = leaf != jnp.asarray(spec.off, leaf.dtype)
    return jnp.any(differs, axis=-1) if spec.width is not None else differs


def where_rows(on: Bool[Array, " S"], new: T, old: T) -> T:
    """`new` in the rows that are on, `old` bit by bit in the others; any tree of leaves [S ...]."""
    return jax.tree.map(
        lambda a, b: jnp.where(on.reshape(-1, *[1] * (b.ndim - 1)), a.astype(b.dtype), b), new, old
    )
