"""The Llama family, top-down: Llama - Block - Attention, FeedForward.

Recipes for `params.py`: weights arrive from outside, the cache goes through. Three ways in: `step`
(one token for every slot), `prompt` (a run of tokens of one slot) and `branches` (several short
runs of one slot); all are the same blocks with another way to attend. The residual stream is
float32. With the C++ kernels, matrices that read the same rows are one weight (`fused`). Knows no
sampler, no slot bookkeeping. Letters: `shapes.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from jaxllama import kernels
from jaxllama.config import ModelConfig
from jaxllama.kernels.cpu_matmul import Wanted
from jaxllama.kernels.reference import Parts, Turn
from jaxllama.model import rope
from jaxllama.model.cache import KVCache, LayerCache
from jaxllama.model.linear import Embedding, GateUp, Linear, Norm
from jaxllama.shapes import Array, Bool, Float, Int
from jaxllama.sharding import constrain

Attend = Callable[[Parts, Turn, LayerCache], tuple[Array, LayerCache]]


class Llama(nnx.Module):
    """Embedding, blocks, final norm, head; `body` is the kind of kernels it runs on."""

    def __init__(self, config: ModelConfig, body: str = "xla") -> None:
        self.config = config
        self.ways = kernels.attention(body, config.head_dim)
        self.embed = Embedding(config.vocab_size, config.width)
        self.blocks = nnx.List([Block(config, fused=body == "cpu") for _ in range(config.layers)])
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
        """One token for every slot; rows that are not active leave no trace."""

        def attend(parts: Parts, turn: Turn, layer: LayerCache) -> tuple[Array, LayerCache]:
            window = self.config.window
            out, new = self.ways.step(parts, turn, layer.arrays, position, active, window)
            return out, LayerCache(*new)

        return self.through(tokens, cache, position, attend, "slots", active)

    def prompt(
        self,
        tokens: Int[Array, " L"],
        cache: KVCache,
        slot: Int[Array, ""],
        start: Int[Array, ""],
        count: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """A run of tokens of one slot, from cache column `start` on; only `count` are real."""
        real = jnp.int32(tokens.shape[0]) if count is None else count
        position = start + jnp.arange(tokens.shape[0], dtype=jnp.int32)

        def attend(parts: Parts, turn: Turn, layer: LayerCache) -> tuple[Array, LayerCache]:
            place = kernels.Place(slot, start, real)
            out, new = self.ways.prompt(parts, turn, layer.arrays, place, self.config.window)
            return out, LayerCache(*new)

        wanted = jnp.arange(tokens.shape[0]) < real
        return self.through(tokens, cache, position, attend, "rows", wanted)

    def branches(
        self,
        tokens: Int[Array, " L"],
        cache: KVCache,
        slot: Int[Array, ""],
        places: Int[Array, "2 G"],
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Runs of equal size in one slot, in turn: each has a first column and a real length.

        A run sees what lies before its first column by the time it comes: of the runs before it,
        too, so one may go on from another, or take the columns of one that is done with.
        """
        starts, counts = places
        runs = starts.shape[0]
        size = tokens.shape[0] // runs
        position = (starts[:, None] + jnp.arange(size, dtype=jnp.int32)).reshape(-1)

        def attend(parts: Parts, turn: Turn, layer: LayerCache) -> tuple[Array, LayerCache]:
            mixed = []
            for run in range(runs):
                of_run = slice(run * size, (run + 1) * size)
                its_parts, its_turn = jax.tree.map(lambda x, at=of_run: x[at], (parts, turn))
                place = kernels.Place(slot, starts[run], counts[run])
                window = self.config.window
                out, new = self.ways.prompt(its_parts, its_turn, layer.arrays, place, window)
                layer = LayerCache(*new)
                mixed.append(out)
            return jnp.concatenate(mixed), layer

        return self.through(tokens, cache, position, attend, "rows")

    def through(
        self,
        tokens: Int[Array, " L"],
        cache: KVCache,
        position: Int[Array, " L"],
        attend: Attend,
        rows: str,
        wanted: Wanted = None,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Embedding and all blocks; `rows` is the logical axis the tokens lie on."""
        x = constrain(self.embed(tokens), rows, "width")
        turn = rope.tables(self.config.rope, self.config.head_dim, position)
        layers = []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, updated = block.attention(x, block.attention_norm, turn, layer, attend, wanted)
            x = block.ffn(constrain(x, rows, "width"), block.ffn_norm, wanted)
            x = constrain(x, rows, "width")
            layers.append(updated)
        return x, tuple(layers)

    def head(self, hidden: Float[Array, "L D"], wanted: Wanted = None) -> Float[Array, "L V"]:
        """Logits of the next token, float32."""
        if self.unembed is None:
            return self.embed.scores(hidden, norm=self.final_norm, wanted=wanted)
        return self.unembed(hidden, norm=self.final_norm, wanted=wanted)


class Block(nnx.Module):
    """Attention and feed-forward; each reads the normed stream and is added back to it."""

    def __init__(self, config: ModelConfig, *, fused: bool) -> None:
        self.attention_norm = Norm(config.width, config.norm_eps)
        self.attention = Attention(config, fused=fused)
        self.ffn_norm = Norm(config.width, config.norm_eps)
        self.ffn = FeedForward(config, fused=fused)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, *, fused: bool) -> None:
        width, bias = config.width, config.qkv_bias
        self.sizes = config.heads, config.kv_heads, config.head_dim
        inner, shared = (count * config.head_dim for count in self.sizes[:2])
        self.fused = fused
        if fused:
            self.qkv = Linear(width, inner + 2 * shared, ("width", "heads"), bias=False)
        else:
            self.q = Linear(width, inner, ("width", "heads"), bias=bias)
            self.k = Linear(width, shared, ("width", "kv_heads"), bias=bias)
            self.v = Linear(width, shared, ("width", "kv_heads"), bias=bias)
        out_bias = config.out_bias and not fused
        self.o = Linear(inner, width, ("heads", "width"), bias=out_bias)
        self.q_norm = Norm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def __call__(
        self,
        x: Array,
        norm: Norm,
        turn: Turn,
        layer: LayerCache,
        attend: Attend,
        wanted: Wanted,
    ) -> tuple[Float[Array, "L D"], LayerCache]:
        """Norm, project, attend (which rotates and appends to the cache), project back, add."""
        q, k, v = self.project(x, norm, wanted)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, layer = attend((q, k, v), turn, layer)
        return self.o(mixed, add=x, wanted=wanted), layer

    def project(self, x: Array, norm: Norm, wanted: Wanted) -> Parts:
        """Queries, keys and values by heads."""
        heads, kv_heads, size = self.sizes
        if self.fused:
            cuts = [heads * size, (heads + kv_heads) * size]
            flat = jnp.split(self.qkv(x, norm=norm, wanted=wanted), cuts, axis=1)
        else:
            normed = norm(x)
            flat = [part(normed) for part in (self.q, self.k, self.v)]
        q, k, v = (rearrange(part, "l (n h) -> l n h", h=size) for part in flat)
        return q, k, v


class FeedForward(nnx.Module):
    """x + down(silu(gate(norm(x))) * up(norm(x)))."""

    def __init__(self, config: ModelConfig, *, fused: bool) -> None:
        width, inner, bias = config.width, config.ffn_width, config.ffn_bias and not fused
        self.fused = fused
        if fused:
            self.gate_up = GateUp(width, inner)
        else:
            self.gate = Linear(width, inner, ("width", "ffn"), bias=bias)
            self.up = Linear(width, inner, ("width", "ffn"), bias=bias)
        self.down = Linear(inner, width, ("ffn", "width"), bias=bias)

    def __call__(self, x: Float[Array, "L D"], norm: Norm, wanted: Wanted) -> Float[Array, "L D"]:
        """Apply to every row and add to it."""
        if self.fused:
            return self.down(self.gate_up(x, norm=norm, wanted=wanted), add=x, wanted=wanted)
        normed = norm(x)
        return self.down(jax.nn.silu(self.gate(normed)) * self.up(normed), add=x)
