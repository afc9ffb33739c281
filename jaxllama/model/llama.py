"""The Llama family, top-down: Llama - Block - Attention, FeedForward.

Module definitions for `params.py`: weights are passed in, the cache is passed through. Three entry
points: `step` (one token for every slot), `prompt` (a run of tokens of one slot) and `branches`
(several short runs of one slot). All run the same blocks and differ in how they attend. The
residual stream is float32. Knows no sampler and no slot bookkeeping. Letters: `shapes.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from jaxllama.config import ModelConfig
from jaxllama.kernels.body import ActiveRows, AttentionOps, Projections, PromptSpan, Rotation
from jaxllama.model import rope
from jaxllama.model.cache import KVCache, LayerCache
from jaxllama.model.linear import Embedding, Linear, Norm, gated, project
from jaxllama.shapes import Array, Bool, Float, Int
from jaxllama.sharding import constrain

Attended = tuple[Array, LayerCache]  # mixed values [L W], and the layer with the new columns
Attend = Callable[[Projections, Rotation, LayerCache], Attended]
AttendLayer = Callable[[Projections], Attended]


class RowInfo(NamedTuple):
    """The rows of a call."""

    position: Int[Array, " L"]
    active: ActiveRows  # None: all of them
    axis: str  # logical axis that the rows lie on: slots, or tokens of a prompt ("rows")


class Llama(nnx.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: ModelConfig, attention: AttentionOps) -> None:
        self.config = config
        self.attention = attention
        self.embed = Embedding(config.vocab_size, config.width)
        self.blocks = nnx.List([Block(config) for _ in range(config.layers)])
        self.final_norm = Norm(config.width, config.norm_eps)
        head = Linear(config.width, config.vocab_size, ("width", "vocab"), bias=False)
        self.unembed = None if config.tied else head

    def step(
        self,
        tokens: Int[Array, " S"],
        cache: KVCache,
        position: Int[Array, " S"],
        active: Bool[Array, " S"],
    ) -> tuple[Float[Array, "S D"], KVCache]:
        """Compute one token for every slot; inactive rows do not change the cache."""

        def attend(qkv: Projections, rotation: Rotation, layer: LayerCache) -> Attended:
            window = self.config.window
            out, new = self.attention.step(qkv, rotation, layer.arrays, position, active, window)
            return out, LayerCache(*new)

        return self.through(tokens, cache, attend, RowInfo(position, active, "slots"))

    def prompt(
        self,
        tokens: Int[Array, " L"],
        cache: KVCache,
        slot: Int[Array, ""],
        start: Int[Array, ""],
        count: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Compute a run of tokens of one slot from column `start`; the first `count` are real."""
        real = jnp.int32(tokens.shape[0]) if count is None else count
        position = start + jnp.arange(tokens.shape[0], dtype=jnp.int32)

        def attend(qkv: Projections, rotation: Rotation, layer: LayerCache) -> Attended:
            span = PromptSpan(slot, start, real)
            window = self.config.window
            out, new = self.attention.prompt(qkv, rotation, layer.arrays, span, window)
            return out, LayerCache(*new)

        active = jnp.arange(tokens.shape[0]) < real
        return self.through(tokens, cache, attend, RowInfo(position, active, "rows"))

    def branches(
        self,
        tokens: Int[Array, " L"],
        cache: KVCache,
        slot: Int[Array, ""],
        places: Int[Array, "2 G"],
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Compute runs of equal size in one slot, one after the other.

        `places` holds the first column and the real length of each run. A run attends to all
        columns before its first one, as they are at its turn: so it may continue an earlier run, or
        overwrite the columns of a finished one.
        """
        starts, counts = places
        runs = starts.shape[0]
        size = tokens.shape[0] // runs
        position = (starts[:, None] + jnp.arange(size, dtype=jnp.int32)).reshape(-1)

        def attend(qkv: Projections, rotation: Rotation, layer: LayerCache) -> Attended:
            mixed = []
            for run in range(runs):
                of_run = slice(run * size, (run + 1) * size)
                own_qkv, own_rotation = jax.tree.map(lambda x, at=of_run: x[at], (qkv, rotation))
                span = PromptSpan(slot, starts[run], counts[run])
                out, new = self.attention.prompt(
                    own_qkv, own_rotation, layer.arrays, span, self.config.window
                )
                layer = LayerCache(*new)
                mixed.append(out)
            return jnp.concatenate(mixed), layer

        return self.through(tokens, cache, attend, RowInfo(position, None, "rows"))

    def through(
        self, tokens: Int[Array, " L"], cache: KVCache, attend: Attend, rows: RowInfo
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Apply embedding and all blocks."""
        with jax.named_scope("embed"):
            x = constrain(self.embed(tokens), rows.axis, "width")
        with jax.named_scope("rope_tables"):
            rotation = rope.tables(self.config.rope, self.config.head_dim, rows.position)
        layers = []
        for index, (block, layer) in enumerate(zip(self.blocks, cache, strict=True)):
            with jax.named_scope(f"block_{index}"):
                x, updated = block(x, rows, lambda qkv, at=layer: attend(qkv, rotation, at))
            layers.append(updated)
        return x, tuple(layers)

    def head(self, hidden: Float[Array, "L D"], active: ActiveRows = None) -> Float[Array, "L V"]:
        """Return the logits of the next token, float32."""
        with jax.named_scope("head"):
            if self.unembed is None:
                return self.embed.scores(hidden, norm=self.final_norm, active=active)
            return self.unembed(hidden, norm=self.final_norm, active=active)


class Block(nnx.Module):
    """Attention and feed-forward; each reads the normed stream and adds its result to it."""

    def __init__(self, config: ModelConfig) -> None:
        self.attention_norm = Norm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = Norm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)

    def __call__(
        self, x: Float[Array, "L D"], rows: RowInfo, attend: AttendLayer
    ) -> tuple[Float[Array, "L D"], LayerCache]:
        """Apply to every row; `attend` also appends to the layer's cache and returns it."""
        with jax.named_scope("attention"):
            x, layer = self.attention(x, self.attention_norm, attend, rows.active)
        with jax.named_scope("feed_forward"):
            x = self.ffn(constrain(x, rows.axis, "width"), self.ffn_norm, rows.active)
        return constrain(x, rows.axis, "width"), layer


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        width, bias = config.width, config.qkv_bias
        self.head_dim = config.head_dim
        inner, shared = (count * config.head_dim for count in (config.heads, config.kv_heads))
        self.q = Linear(width, inner, ("width", "heads"), bias=bias)
        self.k = Linear(width, shared, ("width", "kv_heads"), bias=bias)
        self.v = Linear(width, shared, ("width", "kv_heads"), bias=bias)
        self.o = Linear(inner, width, ("heads", "width"), bias=config.out_bias)
        self.q_norm = Norm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def __call__(
        self, x: Float[Array, "L D"], norm: Norm, attend: AttendLayer, active: ActiveRows
    ) -> tuple[Float[Array, "L D"], LayerCache]:
        """Norm, project, rotate and attend, project back, add."""
        outputs = project((self.q, self.k, self.v), x, norm, active)
        q, k, v = (rearrange(out, "l (n h) -> l n h", h=self.head_dim) for out in outputs)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, layer = attend((q, k, v))
        return self.o(mixed, add=x, active=active), layer


class FeedForward(nnx.Module):
    """x + down(silu(gate(norm(x))) * up(norm(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        width, inner, bias = config.width, config.ffn_width, config.ffn_bias
        self.gate = Linear(width, inner, ("width", "ffn"), bias=bias)
        self.up = Linear(width, inner, ("width", "ffn"), bias=bias)
        self.down = Linear(inner, width, ("ffn", "width"), bias=bias)

    def __call__(
        self, x: Float[Array, "L D"], norm: Norm, active: ActiveRows
    ) -> Float[Array, "L D"]:
        """Apply to every row and add the result to the row."""
        return self.down(gated(self.gate, self.up, x, norm, active), add=x, active=active)
