"""The Llama family, top-down: Llama - Block - Attention, FeedForward - Norm.

Recipes for `params.py`: weights arrive from outside, the cache goes through. Two ways in: `step`
(one token for every slot) and `prompt` (a run of tokens of one slot); both are the same blocks
with another way to attend. The residual stream is float32. Knows no platform, no sampler, no slot
bookkeeping. Letters: see `shapes.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from jaxllama import kernels
from jaxllama.config import ModelConfig
from jaxllama.kernels.reference import Parts, Turn
from jaxllama.model import rope
from jaxllama.model.cache import KVCache, LayerCache
from jaxllama.model.linear import Embedding, Linear
from jaxllama.shapes import Array, Bool, Float, Int
from jaxllama.sharding import constrain

Attend = Callable[[Parts, Turn, LayerCache], tuple[Array, LayerCache]]


class Llama(nnx.Module):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
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
        """One token for every slot; rows that are not active leave no trace."""

        def attend(parts: Parts, turn: Turn, layer: LayerCache) -> tuple[Array, LayerCache]:
            window = self.config.window
            out, new = kernels.attend_step(parts, turn, layer, position, active, window)
            return out, LayerCache(*new)

        return self.through(tokens, cache, position, attend, "slots")

    def prompt(
        self,
        tokens: Int[Array, " L"],
        cache: KVCache,
        slot: Int[Array, ""],
        start: Int[Array, ""],
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """A run of tokens of one slot, from cache column `start` on."""
        position = start + jnp.arange(tokens.shape[0])

        def attend(parts: Parts, turn: Turn, layer: LayerCache) -> tuple[Array, LayerCache]:
            window = self.config.window
            out, new = kernels.attend_prompt(parts, turn, layer, slot, position, window)
            return out, LayerCache(*new)

        return self.through(tokens, cache, position, attend, "rows")

    def through(
        self,
        tokens: Int[Array, " L"],
        cache: KVCache,
        position: Int[Array, " L"],
        attend: Attend,
        rows: str,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Embedding and all blocks; `rows` is the logical axis the tokens lie on."""
        x = constrain(self.embed(tokens), rows, "width")
        turn = rope.tables(self.config.rope, self.config.head_dim, position)
        layers = []
        for block, layer in zip(self.blocks, cache, strict=True):
            mixed, updated = block.mix(x, turn, layer, attend)
            x = constrain(x + mixed, rows, "width")
            x = constrain(x + block.feed(x), rows, "width")
            layers.append(updated)
        return x, tuple(layers)

    def head(self, hidden: Float[Array, "L D"]) -> Float[Array, "L V"]:
        """Logits of the next token, float32."""
        x = self.final_norm(hidden)
        return self.embed.scores(x) if self.unembed is None else self.unembed(x)


class Block(nnx.Module):
    """Attention and feed-forward; each reads the normed stream and is added back to it."""

    def __init__(self, config: ModelConfig) -> None:
        self.attention_norm = Norm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = Norm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)

    def mix(
        self, x: Array, turn: Turn, layer: LayerCache, attend: Attend
    ) -> tuple[Float[Array, "L D"], LayerCache]:
        """What attention adds to the stream."""
        return self.attention(self.attention_norm(x), turn, layer, attend)

    def feed(self, x: Float[Array, "L D"]) -> Float[Array, "L D"]:
        """What the feed-forward adds to the stream."""
        return self.ffn(self.ffn_norm(x))


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        width, size = config.width, config.head_dim
        inner, shared = config.heads * size, config.kv_heads * size
        self.size = size
        self.q = Linear(width, inner, ("width", "heads"), bias=config.qkv_bias)
        self.k = Linear(width, shared, ("width", "kv_heads"), bias=config.qkv_bias)
        self.v = Linear(width, shared, ("width", "kv_heads"), bias=config.qkv_bias)
        self.o = Linear(inner, width, ("heads", "width"), bias=config.out_bias)
        self.q_norm = Norm(size, config.norm_eps) if config.qk_norm else None
        self.k_norm = Norm(size, config.norm_eps) if config.qk_norm else None

    def __call__(
        self, x: Array, turn: Turn, layer: LayerCache, attend: Attend
    ) -> tuple[Float[Array, "L D"], LayerCache]:
        """Project, rotate, attend (which appends to the cache), project back."""
        q, k, v = (
            rearrange(p(x), "l (n h) -> l n h", h=self.size) for p in (self.q, self.k, self.v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, layer = attend((q, k, v), turn, layer)
        return self.o(mixed), layer


class FeedForward(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        width, inner, bias = config.width, config.ffn_width, config.ffn_bias
        self.gate = Linear(width, inner, ("width", "ffn"), bias=bias)
        self.up = Linear(width, inner, ("width", "ffn"), bias=bias)
        self.down = Linear(inner, width, ("ffn", "width"), bias=bias)

    def __call__(self, x: Float[Array, "L D"]) -> Float[Array, "L D"]:
        """Apply to every row."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Norm(nnx.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = nnx.Param(jnp.zeros(width), axes=("width",))
        self.eps = eps

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        """Scale every vector to unit mean square, then by the weight."""
        return kernels.norm(x, self.weight.get_value(), self.eps)
