"""BERT-family encoders: the embeddings of tokens, a block, and the pooling of texts.

Module definitions: weights are passed in, as in `llama.py`. A call works on one tile: the tokens of
several texts, one after the other. Each token attends to all tokens of its own text. Norms come
after the residual sums. All blocks are alike, so that one program serves all of them. Everything is
float32 in plain JAX, which is as fast here as the C++ kernels on float32 weights. Knows no
tokenizer and no queue. Letters: `shapes.py`; R are texts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax

from jaxllama.config import EncoderConfig
from jaxllama.kernels.plain.matmul import matmul
from jaxllama.model.module import Module, Parameter, give_values, parameters_of
from jaxllama.model.params import Tree
from jaxllama.shapes import Array, Bool, Float, Int

HIDDEN = -1e30  # score of a key of another text; finite, so that padding rows are not NaN
QUERIES = 512  # rows that attend at a time, to bound the memory of scores
FARTHEST = 128  # MPNet: distances from here on share one class
SMALLEST_LENGTH = 1e-12  # as torch.nn.functional.normalize divides
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class TextTile(NamedTuple):
    """The tokens of several texts for one call; rows of padding have the text number -1."""

    ids: Int[Array, " L"]
    place: Int[Array, " L"]  # of a token in its text, from 0
    text: Int[Array, " L"]  # number of the text, from 0


class TokenEmbeddings(Module):
    """The sum of a vector for the token, one for its place and one for its type, normed."""

    def __init__(self, config: EncoderConfig) -> None:
        width, buckets = config.width, config.relative_buckets
        self.first, self.buckets = config.first_position, buckets
        self.embed = Table(config.vocab_size, width)
        self.positions = Table(config.positions, width)
        self.types = Table(config.token_types, width) if config.token_types else None
        self.norm = LayerNorm(width, config.norm_eps)
        self.distances = Table(buckets, config.heads) if buckets else None

    def __call__(self, tile: TextTile) -> Float[Array, "L D"]:
        """Return the input of the first block: the embedding of every token in `tile`.

        A tile is the tokens of several texts, one after the other.
        """
        x = self.embed(tile.ids) + self.positions(tile.place + self.first)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(tile.ids))
        return self.norm(x)

    def biases(self, tile: TextTile) -> Float[Array, "N L L"] | None:
        """Return the attention bias of each head for every pair of query and key in `tile`.

        A tile is the tokens of several texts. None for a model without biases.
        """
        if self.distances is None:
            return None
        classes = distance_classes(tile.place[None, :] - tile.place[:, None], self.buckets)
        rows = self.distances(classes.reshape(-1))
        return rearrange(rows, "(l m) n -> n l m", l=tile.place.shape[0])


class EncoderBlock(Module):
    """Attention and feed-forward; each result is added to its input, and the sum is normed."""

    def __init__(self, config: EncoderConfig) -> None:
        width, inner = config.width, config.ffn_width
        self.heads = config.heads
        self.act = ACTIVATIONS[config.activation]
        self.q, self.k, self.v, self.o = (Dense(width, width) for _ in range(4))
        self.attention_norm = LayerNorm(width, config.norm_eps)
        self.up, self.down = Dense(width, inner), Dense(inner, width)
        self.ffn_norm = LayerNorm(width, config.norm_eps)

    def __call__(
        self,
        x: Float[Array, "L D"],
        text: Int[Array, " L"],
        bias: Float[Array, "N L L"] | None,
    ) -> Float[Array, "L D"]:
        """Apply attention and feed-forward of one layer to every token.

        `x` are the hidden states. `text` is the number of each token's text: a token attends only
        to its own text. `bias` is added to the attention scores, None: nothing is.
        """
        with jax.named_scope("attention"):
            q, k, v = (
                rearrange(layer(x), "l (n h) -> n l h", n=self.heads)
                for layer in (self.q, self.k, self.v)
            )
            mixed = attend(q, k, v, text, bias)
            x = self.attention_norm(x + self.o(rearrange(mixed, "n l h -> l (n h)")))
        with jax.named_scope("feed_forward"):
            return self.ffn_norm(x + self.down(self.act(self.up(x))))


class Table(Module):
    """One vector for each id."""

    def __init__(self, rows: int, width: int) -> None:
        self.weight = Parameter(rows, width)

    def __call__(self, ids: Int[Array, " L"]) -> Float[Array, "L D"]:
        """Return the vector in the table for every id."""
        return self.weight.value[ids]


class Dense(Module):
    """x · weight + bias."""

    def __init__(self, inward: int, outward: int) -> None:
        self.weight = Parameter(inward, outward)
        self.bias = Parameter(outward)

    def __call__(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · weight + bias for every row."""
        return matmul(x, self.weight.value) + self.bias.value


class LayerNorm(Module):
    """Shift every vector to mean 0 and scale it to variance 1, then by weight and bias."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = Parameter(width)
        self.bias = Parameter(width)
        self.eps = eps

    def __call__(self, x: Float[Array, "L D"]) -> Float[Array, "L D"]:
        """Apply layer normalization to every row, in float32."""
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale = lax.rsqrt(variance + self.eps) * self.weight.value
        return centred * scale + self.bias.value


def attend(
    q: Float[Array, "N L H"],
    k: Float[Array, "N L H"],
    v: Float[Array, "N L H"],
    text: Int[Array, " L"],
    bias: Float[Array, "N L L"] | None,
) -> Float[Array, "N L H"]:
    """Let every token attend to the tokens of its own text, QUERIES queries at a time.

    `q`, `k` and `v` are queries, keys and values by head. `text` is the number of each token's
    text. `bias` [head, query, key] is added to the scores, None: nothing is.
    """
    rows = q.shape[1]
    exact = lax.Precision.HIGHEST
    q = q * q.shape[2] ** -0.5

    def some(at: Any, count: int) -> Float[Array, "N L H"]:
        own = lax.dynamic_slice_in_dim(q, at, count, 1)
        scores = jnp.einsum("nlh,nmh->nlm", own, k, precision=exact)
        if bias is not None:
            scores = scores + lax.dynamic_slice_in_dim(bias, at, count, 1)
        seen = lax.dynamic_slice_in_dim(text, at, count)[:, None] == text[None, :]
        share = jax.nn.softmax(jnp.where(seen, scores, HIDDEN), axis=-1)
        return jnp.einsum("nlm,nmh->nlh", share, v, precision=exact)

    if rows <= QUERIES:
        return some(0, rows)
    parts = lax.map(lambda at: some(at, QUERIES), jnp.arange(0, rows, QUERIES))
    return rearrange(parts, "p n l h -> n (p l) h")


def distance_classes(distance: Int[Array, "L M"], count: int) -> Int[Array, "L M"]:
    """Return MPNet's relative position bucket of each distance (key minus query).

    Small distances have a bucket each; larger ones share buckets, whose sizes grow logarithmically.
    `count` is the number of buckets.
    """
    half = count // 2
    exact = half // 2
    far = np.arange(FARTHEST + 1)
    steps = np.log(np.maximum(far, 1) / exact) / np.log(FARTHEST / exact) * (half - exact)
    # 1e-9: powers of two lie on bounds, and must not fall below them by rounding
    logarithmic = np.minimum(exact + np.floor(steps + 1e-9), half - 1)
    classes = jnp.asarray(np.where(far < exact, far, logarithmic), jnp.int32)
    return classes[jnp.minimum(jnp.abs(distance), FARTHEST)] + jnp.where(distance > 0, half, 0)


# Pooling.


def pool(
    x: Float[Array, "L D"], text: Int[Array, " L"], texts: int, config: EncoderConfig
) -> Float[Array, "R D"]:
    """Pool hidden states into one vector for each of the first `texts` texts of a tile.

    A tile is a batch of texts. `text` is the number of each row's text; the vector for a number
    that no row has is undefined. `config` says how to pool.
    """
    found = POOLINGS[config.pooling](x, text, texts)
    return scaled_to_one(found) if config.normalizes else found


def members(text: Int[Array, " L"], texts: int) -> Bool[Array, "R L"]:
    """Return a mask of the rows that belong to each of the texts 0 to `texts` - 1.

    `text` is the number of each row's text.
    """
    return text[None, :] == jnp.arange(texts)[:, None]


def pool_sum(
    x: Float[Array, "L D"], text: Int[Array, " L"], texts: int, power: float
) -> Float[Array, "R D"]:
    """Return the sum of each text's rows, divided by (number of its rows) ** `power`.

    `text` is the number of each row's text, `texts` the number of results.
    """
    own = members(text, texts).astype(jnp.float32)
    total = jnp.einsum("rl,ld->rd", own, x, precision=lax.Precision.HIGHEST)
    return total / jnp.maximum(own.sum(axis=1, keepdims=True), 1) ** power


def pool_first(x: Float[Array, "L D"], text: Int[Array, " L"], texts: int) -> Float[Array, "R D"]:
    """Return the first row of each text; `text` is the number of each row's text.

    `texts` is the number of results.
    """
    return x[jnp.argmax(members(text, texts), axis=1)]


def pool_last(x: Float[Array, "L D"], text: Int[Array, " L"], texts: int) -> Float[Array, "R D"]:
    """Return the last row of each text; `text` is the number of each row's text.

    `texts` is the number of results.
    """
    return x[x.shape[0] - 1 - jnp.argmax(members(text, texts)[:, ::-1], axis=1)]


def pool_max(x: Float[Array, "L D"], text: Int[Array, " L"], texts: int) -> Float[Array, "R D"]:
    """Return the largest value in each column over a text's rows.

    `text` is the number of each row's text, `texts` the number of results.
    """
    return jax.ops.segment_max(x, jnp.where(text < 0, texts, text), texts + 1)[:texts]


POOLINGS: dict[str, Callable[[Array, Array, int], Array]] = {
    "mean": partial(pool_sum, power=1.0),
    "mean_sqrt": partial(pool_sum, power=0.5),
    "cls": pool_first,
    "last": pool_last,
    "max": pool_max,
}


def scaled_to_one(x: Float[Array, "R D"]) -> Float[Array, "R D"]:
    """Scale every row to Euclidean length 1."""
    length = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return x / jnp.maximum(length, SMALLEST_LENGTH)


# Weights.


def embeddings_of(config: EncoderConfig, params: Tree) -> TokenEmbeddings:
    """Build the embedding layers with the weights `params`, for use in a traced function."""
    module = TokenEmbeddings(config)
    give_values(module, params)
    return module


def block_of(config: EncoderConfig, params: Tree) -> EncoderBlock:
    """Build one block with the weights `params`, for use in a traced function."""
    module = EncoderBlock(config)
    give_values(module, params)
    return module


def encoder_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the model by dotted path; matrices are [in, out]."""
    block = shapes_of(EncoderBlock(config))
    return shapes_of(TokenEmbeddings(config)) | {
        f"blocks.{i}.{path}": shape for i in range(config.layers) for path, shape in block.items()
    }


def shapes_of(module: Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of a module by dotted path."""
    return {path: each.shape for path, each in parameters_of(module)}
