"""The draft model: drafts the next tokens of rows, from a KV cache with the slots of the model's.

Used by `steps.py` inside the decode program, and by `state.py`. Prompts are not computed when a
request begins: a row says how many of its tokens are in the cache, and catches up in decode steps
before it drafts. So whatever fills the model's own cache (prefill, prefixes of other slots, stored
prompts), this one needs no copy to be right. Drafts change no token. Knows no samplers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.kernels import body_named
from jaxllama.model.cache import KVCache, empty_cache
from jaxllama.model.params import Tree, model_of
from jaxllama.shapes import Array, Int32

DRAFT = "draft"  # place of the draft model's weights in the tree of the model's weights
NEAR = 1  # tokens before the last that a row may lack and catch up in steps; else as a prompt


class DraftCache(NamedTuple):
    """The KV cache of the draft model.

    Row s of it has the columns of the first `filled[s]` tokens of row s of the state.
    """

    layers: KVCache
    filled: Int32[Array, " S"]


class RowTokens(NamedTuple):
    """The tokens of rows, all of them known up to the newest one."""

    ids: Int32[Array, "*S T"]
    last: Int32[Array, "*S"]  # index of the newest token


class Drafting(NamedTuple):
    """Drafts that are being computed."""

    cache: DraftCache
    tokens: Int32[Array, "S N"]
    length: Int32[Array, " S"]  # tokens drafted so far


def empty_draft_cache(engine: EngineConfig, spare: int) -> DraftCache | None:
    """Return an empty KV cache for the draft model; None if there is no draft model.

    A column of the cache belongs to one token. Each slot has `spare` extra columns at its end.
    """
    if engine.draft_model is None:
        return None
    layers = empty_cache(engine.draft_model, engine, spare)
    return DraftCache(layers, jnp.zeros(engine.slots, jnp.int32))


def after_new_tokens(
    cache: DraftCache, slot: Array, before: Int32[Array, " T"], after: RowTokens
) -> DraftCache:
    """Return the draft model's cache after a slot's tokens changed from `before` to `after`.

    Only the columns of the longest common prefix of both stay valid, one column per token. `after`
    is one row, without the slot axis.
    """
    differs = before != after.ids
    same = jnp.where(jnp.any(differs), jnp.argmax(differs), differs.shape[0]).astype(jnp.int32)
    return cache._replace(filled=cache.filled.at[slot].min(jnp.minimum(same, after.last)))


def after_copy(cache: DraftCache, source: Array, target: Array, count: Array) -> DraftCache:
    """Return the draft model's cache with its counts of valid columns corrected after a copy.

    The first `count` columns (one per token) of slot `source` were copied to slot `target` before.
    Those of them that are valid in `source` become the valid columns of `target`.
    """
    copied = jnp.minimum(cache.filled[source], count)
    return cache._replace(filled=cache.filled.at[target].set(copied))


def split_weights(params: Tree) -> tuple[Tree, Tree]:
    """Split a tree of weights into those of the model and those of its draft model."""
    own = {name: each for name, each in params.items() if name != DRAFT}
    return own, params.get(DRAFT, {})


def draft_cost(model: ModelConfig, engine: EngineConfig, params: Tree) -> float:
    """Return the time of a step of the draft model relative to one of `model`; 0 if there is none.

    The time is estimated from the bytes of weights that each model reads for one token. `params`
    has the weights of both models.
    """
    if engine.draft_model is None:
        return 0.0

    def read(params: Tree, config: ModelConfig) -> float:
        stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        return float(stored * config.parameters_per_token / config.parameters)

    own, draft = split_weights(params)
    return read(draft, engine.draft_model) / read(own, model)


class DraftModel:
    """Drafts tokens with a smaller model, the likeliest one at each place."""

    def __init__(self, config: ModelConfig, engine: EngineConfig, tile: int, cost: float) -> None:
        """Prepare to draft with the model `config`; prompts are computed `tile` tokens at a time.

        `cost` is the time of a step of this model, relative to a step of the model that it drafts
        for.
        """
        self.config, self.cost = config, cost
        self._most, self._tile = engine.draft_tokens, tile
        self._body = body_named(engine.kernels)

    def draft(
        self, params: Tree, cache: DraftCache, rows: RowTokens, wanted: Int32[Array, " S"]
    ) -> Drafting:
        """Draft `wanted` tokens for each row (0: none); return the drafts and the new cache.

        `rows` has the tokens of each row; `params` are the weights of both models. A row with many
        tokens that are not in the cache yet drafts nothing. Each call computes at most one tile of
        such tokens, for one row.
        """
        params = split_weights(params)[1]
        room = self.config.max_context - rows.last
        wanted = jnp.where(room >= wanted, wanted, 0)
        cache = self._catch_up(params, cache, rows, wanted > 0)
        ready = rows.last - cache.filled <= NEAR
        return self._extend(params, cache, rows, jnp.where(ready, wanted, 0))

    def _catch_up(
        self, params: Tree, cache: DraftCache, rows: RowTokens, wants: Array
    ) -> DraftCache:
        """Compute missing columns of the draft model's cache for one row, at most one tile.

        This is the first row in the mask `wants` that lacks more than NEAR columns; nothing is
        computed if there is none. `rows` has the tokens of each row, `params` the weights of the
        draft model.
        """
        behind = wants & (rows.last - cache.filled > NEAR)
        slot = jnp.argmax(behind).astype(jnp.int32)

        def fill(_: Array, cache: DraftCache) -> DraftCache:
            start = cache.filled[slot]
            places = jnp.minimum(start + jnp.arange(self._tile), rows.ids.shape[1] - 1)
            count = jnp.minimum(rows.last[slot] - start, self._tile)
            weights = {**params, "blocks": self._body.for_prompts(params["blocks"])}
            model = model_of(self.config, weights, self._body.name)
            tokens = self._known(rows.ids[slot][places])
            _, layers = model.prompt(tokens, cache.layers, slot, start, count)
            return DraftCache(layers, cache.filled.at[slot].add(count))

        return lax.fori_loop(0, jnp.any(behind).astype(jnp.int32), fill, cache)

    def _extend(
        self, params: Tree, cache: DraftCache, rows: RowTokens, wanted: Int32[Array, " S"]
    ) -> Drafting:
        """Draft `wanted` tokens for each row (0: none); return the drafts and the new cache.

        `rows` has the tokens of each row, `params` the weights of the draft model. A row that
        drafts may lack a few columns of the cache, which are computed first.
        """
        model = model_of(self.config, params, self._body.name)
        every, most = jnp.arange(wanted.shape[0]), self._most

        def more(so_far: Drafting) -> Array:
            return jnp.any(so_far.length < wanted)

        def one(so_far: Drafting) -> Drafting:
            (layers, filled), tokens, length = so_far
            going = length < wanted
            known = rows.ids[every, jnp.minimum(filled, rows.last)]
            newest = jnp.where(filled > rows.last, tokens[every, jnp.maximum(length - 1, 0)], known)
            place = jnp.where(going, filled, 0)
            hidden, layers = model.step(self._known(newest), layers, place, going)
            drafts = going & (filled >= rows.last)
            found = self._body.choosing.survey(model.head(hidden, drafts), drafts).token
            tokens = tokens.at[every, jnp.where(drafts, length, most)].set(found, mode="drop")
            return Drafting(DraftCache(layers, filled + going), tokens, length + drafts)

        tokens = jnp.zeros((wanted.shape[0], most), jnp.int32)
        return lax.while_loop(more, one, Drafting(cache, tokens, jnp.zeros_like(wanted)))

    def _known(self, tokens: Array) -> Array:
        """Return the token ids clipped to the draft model's vocabulary.

        The model that it drafts for may have more tokens.
        """
        return jnp.clip(tokens, 0, self.config.vocab_size - 1)
