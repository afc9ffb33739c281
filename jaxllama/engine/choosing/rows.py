"""The rows of the batch as samplers see them: tokens, seed, temperature, knobs that are on.

Used by the files of this folder inside the decode program. Knows no logits and no sampler order.
"""

import functools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.engine.choosing import random_numbers
from jaxllama.sampling import NO_TOKEN, Adjuster, Context, KnobSpec, Pairs, Sampler, knobs_of
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32

T = TypeVar("T")

ALL_OF_WORD = 2**32 - 1  # 32 tokens, all allowed


class Rows(NamedTuple):
    """The facts about every row of the batch that samplers may read at this step."""

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
    """Return a bit mask that allows every token of the vocabulary in each of `slots` rows.

    It has one bit per token, packed in words of 32 bits, and is a value for `Rows.allowed`.
    """
    return np.full((slots, -(-vocab // 32)), ALL_OF_WORD, np.uint32)


def context(row: Rows, name: str, total: Float[Array, ""] | None = None) -> Context:
    """Return the Context that the sampler `name` gets beside the logits of one row.

    `row` is one row of Rows, without the slot axis. `total` is the log-sum-exp of the logits, for a
    shaper (a sampler that changes all logits of a row), and None for other samplers.
    """
    return Context(
        row.tokens,
        row.length,
        row.prompt,
        row.stop_ids,
        chance(row, name) if row.chances is None else row.chances[name],
        row.temperature,
        row.allowed,
        total,
    )


def chance(row: Rows, name: str | None = None) -> Float[Array, ""]:
    """Return one uniform random number for one row: for the sampler `name`, or for the draw.

    `name` None means the draw of the token. The number depends on the row's seed and length alone,
    so no other row and no other installed sampler can change it.
    """
    key = key_of(row)
    return random_numbers.uniform(
        key if name is None else random_numbers.fold_in(key, code_of(name))
    )


@scoped
def with_chances(rows: Rows, names: Sequence[str]) -> Rows:
    """Return `rows` with `chances` filled: a random number per row for each sampler in `names`.

    All are computed at once, because separate code for each sampler compiles slowly.
    """
    if not names:
        return rows

    def of_row(row: Rows) -> dict[str, Float[Array, ""]]:
        key = key_of(row)
        codes = jnp.stack([code_of(name) for name in names])
        each = jax.vmap(lambda code: random_numbers.uniform(random_numbers.fold_in(key, code)))(
            codes
        )
        return dict(zip(names, each, strict=True))

    return rows._replace(chances=jax.vmap(of_row)(rows))


def key_of(row: Rows) -> random_numbers.Words:
    """Return the random key of one row at this step: its seed, folded with its token count."""
    return random_numbers.fold_in((row.seed[0], row.seed[1]), row.length)


def code_of(name: str) -> UInt32[Array, ""]:
    """Return the number that is folded into a row's random key for the sampler called `name`."""
    return jnp.uint32(zlib.crc32(name.encode()))


def some(on: Iterable[Bool[Array, " S"]], rows: Rows) -> Bool[Array, " S"]:
    """Return a mask of the rows in which at least one of the masks `on` is true.

    `rows` only tells the number of rows, which is needed if `on` is empty.
    """
    return functools.reduce(jnp.logical_or, on, jnp.zeros_like(rows.active))


def is_warm(rows: Rows) -> Bool[Array, " S"]:
    """Return a mask of the rows with a temperature above 0; the others take the likeliest token."""
    return rows.temperature > 0


def is_asked(sampler: Sampler, rows: Rows) -> Bool[Array, " S"]:
    """Return a mask of the rows in which a sampler acts.

    `sampler` holds its knobs (parameters) for all rows. A sampler that applies constraints acts
    where a row has a constraint; any other sampler acts where a knob turns it on.
    """
    if not (isinstance(sampler, Adjuster) and sampler.constrains):
        return switched_on(sampler)
    if rows.allowed is None:
        return jnp.zeros_like(rows.active)
    return jnp.any(rows.allowed != jnp.uint32(ALL_OF_WORD), axis=-1)


def switched_on(sampler: Sampler) -> Bool[Array, " S"]:
    """Return a mask of the rows in which a knob (parameter) of the sampler turns it on.

    `sampler` holds its knobs for all rows.
    """
    knobs = knobs_of(type(sampler)).items()
    return jnp.any(
        jnp.stack([is_set(getattr(sampler, name), spec) for name, spec in knobs if spec.switch]),
        axis=0,
    )


def is_set(leaf: Array | Pairs, spec: KnobSpec) -> Bool[Array, " S"]:
    """Return a mask of the rows in which a knob (a sampler's parameter) differs from its `off`.

    `leaf` has its value for every row, `spec` its declaration.
    """
    if isinstance(leaf, Pairs):
        return jnp.any(leaf.ids != NO_TOKEN, axis=-1)
    differs = leaf != jnp.asarray(spec.off, leaf.dtype)
    return jnp.any(differs, axis=-1) if spec.width is not None else differs


def where_rows(on: Bool[Array, " S"], new: T, old: T) -> T:
    """Return `new` in the rows where the mask `on` is true, else `old`.

    Both are trees of arrays whose first axis is the rows.
    """
    return jax.tree.map(
        lambda a, b: jnp.where(on.reshape(-1, *[1] * (b.ndim - 1)), a.astype(b.dtype), b), new, old
    )
