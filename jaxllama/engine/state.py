"""DecodeState: all device arrays that change, one pytree, replaced whole.

Owned by the engine; every program takes it (donated: the old one is dead) and returns the next.
Admission writes a `RowStart` into one row.
"""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.choosing.bank import Bank, SamplerBank
from jaxllama.engine.choosing.rows import Rows
from jaxllama.engine.draft_model import (
    DraftCache,
    RowTokens,
    after_new_tokens,
    empty_draft_cache,
)
from jaxllama.engine.drafts import HOPEFUL, HOPEFUL_OF_MODEL
from jaxllama.model.cache import KVCache, empty_cache
from jaxllama.request import GenerationRequest
from jaxllama.sampling import NO_TOKEN
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32
from jaxllama.sharding import shard_shape

StateLeaves: TypeAlias = tuple[Any, ...]  # the arrays of a `DecodeState`, in the order of its tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The state of all slots on the device; `shapes.py` explains the letters in array shapes."""

    cache: KVCache
    tokens: Int32[Array, "S T"]  # prompt and generated tokens, the pending one included
    length: Int32[Array, " S"]  # tokens whose keys are in the cache
    prompt: Int32[Array, " S"]  # tokens of the prompt
    pending: Int32[Array, " S"]  # the last token, not yet in the cache; fed next
    budget: Int32[Array, " S"]  # tokens still allowed; 0 = row inert
    stop_ids: Int32[Array, "S E"]  # padded with NO_TOKEN
    temperature: Float[Array, " S"]
    temperature_last: Bool[Array, " S"]
    seed: UInt32[Array, "S 2"]
    top_logprobs: Int32[Array, " S"]  # -1: none requested
    leader: Int32[Array, " S"]  # of a guidance row: the row whose tokens it takes; -1: other rows
    contrast: Float[Array, " S"]  # guidance scale: moves logits away from the guidance row's
    adapter: Int32[Array, " S"]  # low-rank adapter by its number; -1: none
    adapter_scale: Float[Array, " S"]
    draft_limit: Int32[Array, " S"]  # most tokens to draft in a step; 0: none
    draft_trust: Float[Array, " S"]  # share of drafted tokens that were accepted; 1: not adapted
    bank: Bank
    # Logits after the drafts of a step: room that steps with drafts use. None without speculation.
    # Those of all rows at the first place of a step come first, then those at the next place. With
    # three axes, XLA gives the array another layout in its loops, and copies it in each step.
    draft_logits: Float[Array, "NS V"] | None
    draft: DraftCache | None  # None without a draft model

    @property
    def speaker(self) -> Int32[Array, " S"]:
        """Return, for each row, the index of the row whose drawn token it takes.

        A guidance row, which decodes a negative prompt, takes the token of the row that it guides;
        every other row takes its own token.
        """
        return jnp.where(self.leader < 0, jnp.arange(self.leader.shape[0]), self.leader)

    @property
    def active(self) -> Bool[Array, " S"]:
        """Return the mask of rows that decode.

        A guidance row, which decodes a negative prompt, decodes while the row that it guides does.
        """
        return (self.budget > 0) & (self.budget[self.speaker] > 0)

    def rows(self) -> Rows:
        """Return the part of the state that samplers may read."""
        return Rows(
            tokens=self.tokens,
            length=self.length + 1,  # the pending token is known
            prompt=self.prompt,
            stop_ids=self.stop_ids,
            temperature=self.temperature,
            temperature_last=self.temperature_last,
            seed=self.seed,
            active=self.active & (self.leader < 0),
            top_logprobs=self.top_logprobs,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowStart:
    """The first state of one row; host numbers with the shapes of one row of `DecodeState`."""

    tokens: Any
    length: Any
    prompt: Any
    pending: Any
    budget: Any
    stop_ids: Any
    temperature: Any
    temperature_last: Any
    seed: Any
    top_logprobs: Any
    leader: Any
    contrast: Any
    adapter: Any
    adapter_scale: Any
    draft_limit: Any
    draft_trust: Any
    bank: Bank


def row_start(
    request: GenerationRequest,
    known: tuple[int, ...],
    engine: EngineConfig,
    bank: SamplerBank,
    *,
    leader: int = -1,
) -> RowStart:
    """Build the start values of a request's row in the state.

    `known` are the request's tokens so far, of which all but the last are in the cache. `bank`
    encodes the sampler settings (knobs). `leader` is -1, except for a guidance row, which decodes a
    negative prompt: then it is the slot of the row that it guides.
    """
    tokens = np.zeros(engine.columns, np.int32)
    tokens[: len(known)] = known
    stop_ids = np.full(engine.max_stop_ids, NO_TOKEN, np.int32)
    stop_ids[: len(request.stop_ids)] = request.stop_ids
    generated = len(known) - len(request.prompt)
    hope = HOPEFUL if engine.draft_model is None else HOPEFUL_OF_MODEL
    return RowStart(
        tokens=tokens,
        length=np.int32(len(known) - 1),
        prompt=np.int32(len(request.prompt)),
        pending=np.int32(known[-1]),
        budget=np.int32(request.max_tokens - generated),
        stop_ids=stop_ids,
        temperature=np.float32(request.temperature),
        temperature_last=np.bool_(request.temperature_last),
        seed=np.array([request.seed >> 32, request.seed & 0xFFFFFFFF], np.uint32),
        top_logprobs=np.int32(-1 if request.top_logprobs is None else request.top_logprobs),
        leader=np.int32(leader),
        contrast=np.float32(1.0 if request.contrast is None else request.contrast.scale),
        adapter=np.int32(-1 if request.adapter is None else request.adapter.number),
        adapter_scale=np.float32(0.0 if request.adapter is None else request.adapter.scale),
        draft_limit=np.int32(draft_limit(request, engine)),
        draft_trust=np.float32(hope if request.draft is None else 1.0),
        bank=bank.row(request.knobs),
    )


def draft_limit(request: GenerationRequest, engine: EngineConfig) -> int:
    """Return how many tokens a decode step may draft at most for a request.

    The result is 0 for a request with a constraint, because the device does not know which tokens
    the constraint allows after the next token.
    """
    if request.constraint is not None:
        return 0
    most = engine.draft_tokens
    return most if request.draft is None else min(request.draft, most)


def empty_state(
    model: ModelConfig, engine: EngineConfig, bank: SamplerBank, chunk: int
) -> DecodeState:
    """Make a state with all rows inactive and `chunk` spare columns at the end of the KV cache.

    `bank` has the samplers; the state has arrays for their knobs (settings) and their own state.
    """
    slots = engine.slots
    none = jnp.zeros(slots, jnp.int32)
    return DecodeState(
        cache=empty_cache(model, engine, chunk),
        tokens=jnp.zeros((slots, engine.columns), jnp.int32),
        length=none,
        prompt=none,
        pending=none,
        budget=none,
        stop_ids=jnp.full((slots, engine.max_stop_ids), NO_TOKEN, jnp.int32),
        temperature=jnp.zeros(slots, jnp.float32),
        temperature_last=jnp.zeros(slots, jnp.bool_),
        seed=jnp.zeros((slots, 2), jnp.uint32),
        top_logprobs=none - 1,
        leader=none - 1,
        contrast=jnp.ones(slots, jnp.float32),
        adapter=none - 1,
        adapter_scale=jnp.zeros(slots, jnp.float32),
        draft_limit=none,
        draft_trust=jnp.zeros(slots, jnp.float32),
        bank=bank.empty(slots),
        draft_logits=(
            jnp.zeros(((1 + engine.draft_tokens) * slots, model.vocab_size), jnp.float32)
            if engine.draft_tokens
            else None
        ),
        draft=empty_draft_cache(engine, chunk),
    )


def write_row(
    state: DecodeState, slot: Int32[Array, ""], row: RowStart, bank: SamplerBank
) -> DecodeState:
    """Return the state with the row of `slot` replaced by `row`, so that this row decodes.

    `bank` writes the samplers' part of the row. In the draft model's cache, if there is one, the
    slot keeps the columns of the tokens with which both the old and the new row begin.
    """
    draft = state.draft
    if draft is not None:
        after = RowTokens(row.tokens, row.length)
        draft = after_new_tokens(draft, slot, state.tokens[slot], after)
    named = {
        field.name: getattr(state, field.name).at[slot].set(getattr(row, field.name))
        for field in dataclasses.fields(RowStart)
        if field.name != "bank"
    }
    written = bank.write(state.bank, slot, row.bank)
    return dataclasses.replace(state, **named, bank=written, draft=draft)


def state_shardings(mesh: Mesh, state: DecodeState) -> DecodeState:
    """Return the sharding of every array of the state on a mesh.

    Slots are split over the mesh axis `data`, the key/value heads of the cache over `model`.
    """

    def place(path: tuple[Any, ...], leaf: Array) -> jax.sharding.NamedSharding:
        axes: tuple[str | None, ...] = ("slots", *(None,) * (leaf.ndim - 1))
        if getattr(path[0], "name", "") == "cache":
            axes = ("slots", "kv_heads", None, None)[: leaf.ndim]
        return shard_shape(mesh, leaf.shape, axes)

    return jax.tree_util.tree_map_with_path(place, state)
