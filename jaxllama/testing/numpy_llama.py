"""The whole Llama family in NumPy: what the maths means, for tests to compare against.

Called by tests and by plugin authors' checks. Written without knowledge of `jaxllama.model`, and
must stay so: no cache, no batch, no compiler, one sequence from its first token to its last.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxllama.config import ModelConfig, Rope

Tree = dict[Any, Any]  # nested; `blocks` is keyed by layer number, leaves are arrays


def logits(
    config: ModelConfig,
    params: Tree,
    tokens: Sequence[int] | Int[np.ndarray, " L"],
    *,
    dtype: type[np.floating[Any]] = np.float64,
    last: int | None = None,
) -> Float[np.ndarray, "kept V"]:
    """The logits after each token, computed in `dtype`; `last` keeps only the final few rows."""
    embed = params["embed"]["weight"]
    x = embed[np.asarray(tokens)].astype(dtype)
    for i in range(config.layers):
        block = params["blocks"][i]
        x = x + attention(config, block["attention"], normalize(config, block["attention_norm"], x))
        x = x + feed_forward(block["ffn"], normalize(config, block["ffn_norm"], x))
    x = normalize(config, params["final_norm"], x)[-last if last else 0 :]
    if config.tied:
        return x @ embed.T.astype(dtype, copy=False)
    return linear(params["unembed"], x)


def greedy(
    config: ModelConfig,
    params: Tree,
    prompt: Sequence[int],
    count: int,
    *,
    dtype: type[np.floating[Any]] = np.float64,
) -> list[int]:
    """The `count` tokens that follow `prompt` when the likeliest is always taken."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(config, params, tokens, dtype=dtype, last=1)[0].argmax()))
    return tokens[len(prompt) :]


def attention(
    config: ModelConfig, weights: Tree, x: Float[np.ndarray, "L D"]
) -> Float[np.ndarray, "L D"]:
    """Grouped-query attention: query head n reads key/value head n // group."""
    length = len(x)
    q = linear(weights["q"], x).reshape(length, config.heads, config.head_dim)
    k = linear(weights["k"], x).reshape(length, config.kv_heads, config.head_dim)
    v = linear(weights["v"], x).reshape(length, config.kv_heads, config.head_dim)
    if config.qk_norm:
        q = normalize(config, weights["q_norm"], q)
        k = normalize(config, weights["k_norm"], k)
    q = rotate(config, q)
    k = rotate(config, k)
    mask = visible(length, config.window)
    heads = []
    for n in range(config.heads):
        keys, values = k[:, n // config.group], v[:, n // config.group]
        scores = q[:, n] @ keys.T / math.sqrt(config.head_dim)
        heads.append(softmax(np.where(mask, scores, -np.inf)) @ values)
    return linear(weights["o"], np.concatenate(heads, axis=-1))


def feed_forward(weights: Tree, x: Float[np.ndarray, "L D"]) -> Float[np.ndarray, "L D"]:
    """SwiGLU: down(silu(gate(x)) * up(x))."""
    gate = linear(weights["gate"], x)
    with np.errstate(over="ignore"):  # exp(-gate) may be inf: silu is then 0, as it should be
        silu = gate / (1 + np.exp(-gate))
    return linear(weights["down"], silu * linear(weights["up"], x))


def linear(weights: Tree, x: Float[np.ndarray, "L I"]) -> Float[np.ndarray, "L O"]:
    """A matrix [in out], and a bias if there is one, in the precision of `x`."""
    y = x @ weights["weight"].astype(x.dtype, copy=False)
    return y + weights["bias"].astype(x.dtype) if "bias" in weights else y


def normalize(
    config: ModelConfig, weights: Tree, x: Float[np.ndarray, "*rows I"]
) -> Float[np.ndarray, "*rows I"]:
    """RMSNorm over the last axis: divided by the root of the mean square, then scaled."""
    square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(square + config.norm_eps) * weights["weight"].astype(x.dtype)


def softmax(x: Float[np.ndarray, "L T"]) -> Float[np.ndarray, "L T"]:
    """Exponentials that sum to one along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def visible(length: int, window: int | None) -> Bool[np.ndarray, "L T"]:
    """Which positions (columns) each position (row) attends to: itself and those before it."""
    age = np.arange(length)[:, None] - np.arange(length)[None, :]
    return (age >= 0) & (age < (window or length))


def rotate(config: ModelConfig, x: Float[np.ndarray, "L N H"]) -> Float[np.ndarray, "L N H"]:
    """Rotate pair j = (x[j], x[j + H/2]) of every head by position * frequency[j]."""
    frequency, scale = frequencies(config.rope, config.head_dim)
    angle = np.arange(len(x))[:, None, None] * frequency
    cos = (scale * np.cos(angle)).astype(x.dtype)
    sin = (scale * np.sin(angle)).astype(x.dtype)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def frequencies(rope: Rope, head_dim: int) -> tuple[Float[np.ndarray, " pairs"], float]:
    """Radians per position of each pair, and what cosine and sine are multiplied by."""
    exponent = np.arange(0, head_dim, 2) / head_dim
    base = rope.theta**-exponent
    if rope.kind == "linear":
        return base / rope.factor, 1.0
    if rope.kind == "ntk":
        stretched = rope.theta * rope.factor ** (head_dim / (head_dim - 2))
        return stretched**-exponent, 1.0
    if rope.kind == "llama3":
        return llama3_frequencies(rope, base), 1.0
    if rope.kind == "yarn":
        return yarn_frequencies(rope, base), yarn_scale(rope)
    if rope.kind == "factors":
        return base / np.array(rope.factors), 1.0
    return base, 1.0


def llama3_frequencies(
    rope: Rope, base: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """Fast pairs stay, slow pairs are slowed by `factor`, in between a linear blend.

    Speed is counted in turns over the original context.
    """
    turns = rope.original_context * base / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0, 1)
    return keep * base + (1 - keep) * base / rope.factor


def yarn_frequencies(rope: Rope, base: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """Like llama3, but the blend is linear in the pair's index, between two whole indices."""
    pairs = len(base)

    def index_turning(turns: float) -> float:
        """The (fractional) pair that makes so many turns over the original context."""
        wavelength = rope.original_context / turns
        return pairs * math.log(wavelength / (2 * math.pi)) / math.log(rope.theta)

    first = max(math.floor(index_turning(rope.beta_fast)), 0)
    final = min(math.ceil(index_turning(rope.beta_slow)), 2 * pairs - 1)
    slowed = (np.arange(pairs) - first) / max(final - first, 0.001)
    slowed = np.clip(slowed, 0, 1)
    return slowed * base / rope.factor + (1 - slowed) * base


def yarn_scale(rope: Rope) -> float:
    """The attention factor: given, or grown with the logarithm of the stretch."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0
