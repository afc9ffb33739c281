"""The Llama family, top-down: Llama - Block - Attention, FeedForward.

Module definitions for `params.py`: weights are passed in, the cache is passed through. Four entry
points: `step` (one token for every slot), `runs` (several tokens for every slot), `prompt` (a span
of tokens of one slot) and `spans` (several short spans, each of any slot). All run the same blocks
and differ in how they attend. The residual stream is float32. Knows no sampler and no slot
bookkeeping. Letters: `shapes.py`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxllama.config import LayerSpec, ModelConfig
from jaxllama.kernels.body import ActiveRows, AttentionOps, Projections, PromptSpan, Rotation
from jaxllama.kernels.storage import Layer
from jaxllama.model import rope
from jaxllama.model.cache import KVCache
from jaxllama.model.experts import ExpertsLayer
from jaxllama.model.linear import Embedding, Ends, Linear, Norm, gated, project, scaled
from jaxllama.model.module import Module
from jaxllama.model.rows import Adapters, BlockRows, MatmulRows, RowInfo
from jaxllama.shapes import Array, Bool, Float, Int
from jaxllama.sharding import constrain

Attended = tuple[Array, Layer]  # mixed values [L W], and the layer with the new columns
Attend = Callable[[Projections, Rotation, Layer, int | None], Attended]  # last: the window
AttendLayer = Callable[[Projections], Attended]


class Llama(Module):
    """The network: embedding, blocks, final norm, and the head that computes logits.

    A stage of a pipeline (`StageConfig`) has some of the blocks, and of the ends those that are its
    own. All but the first take hidden states in place of tokens.
    """

    def __init__(self, config: ModelConfig, attention: AttentionOps) -> None:
        self.config = config
        self.attention = attention
        if config.reads_tokens or (config.tied and config.gives_logits):
            self.embed = Embedding(config.vocab_size, config.width)
        self.blocks = [Block(config, spec) for spec in config.specs]
        if config.gives_logits:
            self.final_norm = Norm(config.width, config.norm_eps)
            head = Linear(config.width, config.vocab_size, ("width", "vocab"), bias=False)
            self.unembed = None if config.tied else head

    def step(
        self,
        tokens: Int[Array, " S"] | Float[Array, "S D"],
        cache: KVCache,
        position: Int[Array, " S"],
        active: Bool[Array, " S"],
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "S D"], KVCache]:
        """Compute the hidden state of one new token per slot; return it with the new cache.

        `tokens` are token ids, or hidden states from the previous pipeline stage. `position` is the
        cache column of each token. Inactive rows do not change the cache. `adapters` has the
        adapter of each row, None: no row has one.
        """

        def attend(
            qkv: Projections, rotation: Rotation, layer: Layer, window: int | None
        ) -> Attended:
            return self.attention.step(qkv, rotation, layer, position, active, window)

        rows = RowInfo(position, active, "slots", adapters)
        return self.through(tokens, cache, attend, rows)

    def runs(
        self,
        tokens: Int[Array, "N S"],
        cache: KVCache,
        position: Int[Array, " S"],
        active: Bool[Array, "N S"],
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "N S D"], KVCache]:
        """Compute the hidden states of up to N consecutive new tokens per slot.

        Returns them with the new cache. `position` is the cache column of each slot's first token.
        The mask `active` marks the real tokens, which come first in each slot; padding does not
        change the cache. `adapters` has the adapter of each row, None: no row has one. Only for
        kernels whose result for a row is bit-identical in a batch of any size (those with a
        `row_cost`).
        """
        count, slots = tokens.shape
        position = (position + jnp.arange(count, dtype=jnp.int32)[:, None]).reshape(-1)
        is_real = active.reshape(-1)

        def attend(
            qkv: Projections, rotation: Rotation, layer: Layer, window: int | None
        ) -> Attended:
            return self.attention.step(qkv, rotation, layer, position, is_real, window)

        rows = RowInfo(position, is_real, "slots", adapters)
        hidden, cache = self.through(tokens.reshape(-1), cache, attend, rows)
        return hidden.reshape(count, slots, -1), cache

    def prompt(
        self,
        tokens: Int[Array, " L"] | Float[Array, "L D"],
        cache: KVCache,
        slot: Int[Array, ""],
        start: Int[Array, ""],
        count: Int[Array, ""] | None = None,
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Compute the hidden states of consecutive tokens of one slot, from column `start` on.

        Returns them with the new cache. `tokens` are token ids, or hidden states from the previous
        pipeline stage. Only the first `count` tokens are real (None: all); the others are padding.
        `adapters` has the adapter of each row, None: no row has one.
        """
        real = jnp.int32(tokens.shape[0]) if count is None else count
        position = start + jnp.arange(tokens.shape[0], dtype=jnp.int32)

        def attend(
            qkv: Projections, rotation: Rotation, layer: Layer, window: int | None
        ) -> Attended:
            span = PromptSpan(slot, start, real)
            return self.attention.prompt(qkv, rotation, layer, span, window)

        active = jnp.arange(tokens.shape[0]) < real
        return self.through(tokens, cache, attend, RowInfo(position, active, "rows", adapters))

    def spans(
        self,
        tokens: Int[Array, " L"] | Float[Array, "L D"],
        cache: KVCache,
        places: Int[Array, "3 G"],
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Compute the hidden states of several short spans of consecutive tokens, each of a slot.

        Returns them with the new cache. `tokens` (ids, or hidden states from the previous pipeline
        stage) holds the spans one after the other, all padded to one size. `places` has the slot,
        the first cache column and the number of real tokens of each span: the fields of PromptSpan.
        The spans are written to the cache in order, and each attends to all columns of its slot
        before its first one. So a span may continue an earlier one, or overwrite the columns of a
        finished one. Padding may be written to the columns after a span, even without real tokens.
        `adapters` None: no LoRA adapter.
        """
        starts, counts = places[1:]
        size = tokens.shape[0] // starts.shape[0]
        within = jnp.arange(size, dtype=jnp.int32)
        position = (starts[:, None] + within).reshape(-1)

        def attend(
            qkv: Projections, rotation: Rotation, layer: Layer, window: int | None
        ) -> Attended:
            mixed = []
            for index in range(starts.shape[0]):
                own = slice(index * size, (index + 1) * size)
                own_qkv, own_rotation = jax.tree.map(lambda x, at=own: x[at], (qkv, rotation))
                span = PromptSpan(*places[:, index])
                out, layer = self.attention.prompt(own_qkv, own_rotation, layer, span, window)
                mixed.append(out)
            return jnp.concatenate(mixed), layer

        active = (within < counts[:, None]).reshape(-1)
        return self.through(tokens, cache, attend, RowInfo(position, active, "rows", adapters))

    def through(
        self,
        tokens: Int[Array, " L"] | Float[Array, "L D"],
        cache: KVCache,
        attend: Attend,
        rows: RowInfo,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Apply the embedding and all blocks to tokens; return hidden states and the new cache.

        In a later pipeline stage, `tokens` are hidden states and are not embedded. `attend`
        computes the attention of one layer and writes its cache. `rows` says which rows are used,
        their positions and their adapters.
        """
        config = self.config
        with jax.named_scope("embed"):
            given = tokens
            if config.reads_tokens:
                given = scaled(self.embed(tokens), config.embed_scale)
            x = constrain(given, rows.axis, "width")
        with jax.named_scope("rope_tables"):
            ropes = dict.fromkeys(config.rope_of(spec) for spec in config.specs)
            rotations = {each: rope.layer_tables(config, each, rows.position) for each in ropes}
        layers = []
        for index, (block, spec) in enumerate(zip(self.blocks, config.specs, strict=True)):
            of_layer = (rotations[config.rope_of(spec)], cache[index], config.window_of(spec))
            with jax.named_scope(f"block_{index}"):
                x, updated = block(x, rows.of_block(index), rows.axis, attending(attend, *of_layer))
            layers.append(updated)
        return x, tuple(layers)

    def head(self, hidden: Float[Array, "L D"], active: ActiveRows = None) -> Float[Array, "L V"]:
        """Return the logits of the token after each hidden state, in float32.

        Applies the final norm first. Only the rows in the mask `active` are valid in the result
        (None: all).
        """
        with jax.named_scope("head"):
            if self.unembed is None:
                logits = self.embed.scores(hidden, norm=self.final_norm, active=active)
            else:
                logits = self.unembed(hidden, norm=self.final_norm, rows=MatmulRows(active))
            return capped(scaled(logits, self.config.logit_scale), self.config.logit_cap)


def attending(
    attend: Attend, rotation: Rotation, layer: Layer, window: int | None
) -> Callable[[Projections], Attended]:
    """Return `attend` with the rotary tables, cache and window of one layer filled in.

    `window` limits how many columns a row attends to, None: all. The result is a function of
    queries, keys and values.
    """
    return lambda qkv: attend(qkv, rotation, layer, window)


class Block(Module):
    """Attention and feed-forward; each reads the residual stream and adds its result to it.

    A model norms the inputs of both, their results, or inputs and results.
    """

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        before = config.norms != "after"
        after = config.norms != "before"
        self.attention_norm = Norm(config.width, config.norm_eps) if before else None
        self.attention = Attention(config)
        self.attention_out_norm = Norm(config.width, config.norm_eps) if after else None
        self.ffn_norm = Norm(config.width, config.norm_eps) if before else None
        experts = config.experts_of(spec)
        self.ffn = FeedForward(config) if experts is None else ExpertsLayer(config, experts)
        self.ffn_out_norm = Norm(config.width, config.norm_eps) if after else None
        self.scale = config.residual_scale

    def __call__(
        self, x: Float[Array, "L D"], rows: BlockRows, axis: str, attend: AttendLayer
    ) -> tuple[Float[Array, "L D"], Layer]:
        """Apply attention and feed-forward to every row; return the rows and the layer's new cache.

        `x` are the hidden states; `rows` says which rows are used and which adapters they have.
        `attend` computes attention and writes the layer's cache. `axis` names the logical axis of
        the rows for sharding.
        """
        with jax.named_scope("attention"):
            ends = Ends(self.attention_norm, self.attention_out_norm, self.scale)
            x, layer = self.attention(x, ends, attend, rows)
        with jax.named_scope("feed_forward"):
            ends = Ends(self.ffn_norm, self.ffn_out_norm, self.scale)
            x = self.ffn(constrain(x, axis, "width"), ends, rows)
        return constrain(x, axis, "width"), layer


class Attention(Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        width, bias = config.width, config.qkv_bias
        self.head_dim, self.rotated = config.head_dim, config.rotated
        # Attention divides by the root of the head size; another scale is applied to the queries.
        root = math.sqrt(config.head_dim)
        self.scale = 1.0 if config.query_scale is None else config.query_scale * root
        inner, shared = (count * config.head_dim for count in (config.heads, config.kv_heads))
        self.q = Linear(width, inner, ("width", "heads"), bias=bias)
        self.k = Linear(width, shared, ("width", "kv_heads"), bias=bias)
        self.v = Linear(width, shared, ("width", "kv_heads"), bias=bias)
        self.o = Linear(inner, width, ("heads", "width"), bias=config.out_bias)
        self.norms_all = config.qk_norm_over == "all"
        spans = (inner, shared) if self.norms_all else (config.head_dim, config.head_dim)
        norms = [Norm(span, config.norm_eps) if config.qk_norm else None for span in spans]
        self.q_norm, self.k_norm = norms

    def __call__(
        self, x: Float[Array, "L D"], ends: Ends, attend: AttendLayer, rows: BlockRows
    ) -> tuple[Float[Array, "L D"], Layer]:
        """Apply norm, projections, attention and output projection, and add the result to `x`.

        Returns the sum and the layer's new cache. `attend` computes the attention from queries,
        keys and values, and writes the cache. `ends` has the norms of the input and of the result;
        `rows` says which rows are used and which adapters they have.
        """
        q, k, v = project((self.q, self.k, self.v), x, ends.before, rows.of("qkv"))
        if self.norms_all:
            q, k = self.normed(q, k)
        q, k, v = (rearrange(out, "l (n h) -> l n h", h=self.head_dim) for out in (q, k, v))
        if not self.norms_all:
            q, k = self.normed(q, k)
        if self.rotated != self.head_dim:
            q, k = (rope.pair_up(each, self.rotated) for each in (q, k))
        mixed, layer = attend((scaled(q, self.scale), k, v))
        return ends.add(self.o, mixed, x, rows.of("o")), layer

    def normed(self, q: Array, k: Array) -> tuple[Array, Array]:
        """Apply the model's norms to queries and keys; unchanged if the model has none."""
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)


class FeedForward(Module):
    """x + down(silu(gate(norm(x))) * up(norm(x))), or with gelu in place of silu."""

    def __init__(self, config: ModelConfig) -> None:
        width, inner, bias = config.width, config.ffn_width, config.ffn_bias
        self.activation = config.activation
        self.gate = Linear(width, inner, ("width", "ffn"), bias=bias)
        self.up = Linear(width, inner, ("width", "ffn"), bias=bias)
        self.down = Linear(inner, width, ("ffn", "width"), bias=bias)

    def __call__(self, x: Float[Array, "L D"], ends: Ends, rows: BlockRows) -> Float[Array, "L D"]:
        """Apply the feed-forward to every row and add the result to the row.

        `ends` has the norms of the input and of the result. `rows` says which rows are used and
        which adapters they have.
        """
        both = (self.gate, self.up)
        inner = gated(both, x, ends.before, self.activation, rows.of("gate_up"))
        return ends.add(self.down, inner, x, rows.of("down"))


def capped(x: Float[Array, "L V"], cap: float | None) -> Float[Array, "L V"]:
    """Limit numbers smoothly to -cap..cap by tanh; None leaves them as they are."""
    return x if cap is None else cap * jnp.tanh(x / cap)
