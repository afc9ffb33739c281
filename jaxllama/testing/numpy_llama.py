"""Llama and its relatives in NumPy: a reference for tests to compare with.

Called by tests and by plugin authors' checks. Written without knowledge of `jaxllama.model`, and
must stay so: no cache, no batch, no compiler, one sequence from its first token to its last.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxllama.config import LayerSpec, ModelConfig, Rope

NumpyTree = dict[Any, Any]  # nested; `blocks` is keyed by layer number, leaves are arrays


def logits(
    config: ModelConfig,
    params: NumpyTree,
    tokens: Sequence[int] | Int[np.ndarray, " L"],
    *,
    dtype: type[np.floating[Any]] = np.float64,
    last: int | None = None,
) -> Float[np.ndarray, "kept V"]:
    """Return the logits after each token, computed in `dtype`; `last` keeps only the last rows.

    `params` are the weights as a nested tree; matrices are [in out]. `last` None: all rows.
    """
    embed = params["embed"]["weight"]
    x = embed[np.asarray(tokens)].astype(dtype) * config.embed_scale
    for i, spec in enumerate(config.specs):
        block = params["blocks"][i]
        for part, apply in (("attention", attention), ("ffn", feed_forward)):
            normed = normalize(config, block.get(f"{part}_norm"), x)
            result = apply(config, spec, block[part], normed)
            result = normalize(config, block.get(f"{part}_out_norm"), result)
            x = x + result * config.residual_scale
    x = normalize(config, params["final_norm"], x)[-last if last else 0 :]
    head = embed.T.astype(dtype, copy=False)
    scores = x @ head if config.tied else linear(params["unembed"], x)
    return capped(scores * config.logit_scale, config.logit_cap)


def greedy(
    config: ModelConfig,
    params: NumpyTree,
    prompt: Sequence[int],
    count: int,
    *,
    dtype: type[np.floating[Any]] = np.float64,
) -> list[int]:
    """Return the `count` tokens after `prompt` when the likeliest token is always chosen.

    `params` are the weights as a nested tree; the logits are computed in `dtype`.
    """
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(config, params, tokens, dtype=dtype, last=1)[0].argmax()))
    return tokens[len(prompt) :]


def attention(
    config: ModelConfig, spec: LayerSpec, weights: NumpyTree, x: Float[np.ndarray, "L D"]
) -> Float[np.ndarray, "L D"]:
    """Return the result of grouped-query attention for the inputs `x`, one row per token.

    Query head n reads key/value head n // group. `spec` says which rotary embedding and window the
    layer has; `weights` are those of its attention, by name.
    """
    q, k, v = (linear(weights[name], x) for name in "qkv")
    if config.qk_norm and config.qk_norm_over == "all":
        q, k = normalize(config, weights["q_norm"], q), normalize(config, weights["k_norm"], k)
    q, k, v = (each.reshape(len(x), -1, config.head_dim) for each in (q, k, v))
    if config.qk_norm and config.qk_norm_over == "head":
        q, k = normalize(config, weights["q_norm"], q), normalize(config, weights["k_norm"], k)
    rope = config.rope_of(spec)
    if rope is not None:
        q, k = rotate(rope, config.rotary_dim, q), rotate(rope, config.rotary_dim, k)
    mask = visible(len(x), config.window_of(spec))
    scale = config.query_scale or 1 / math.sqrt(config.head_dim)
    heads = []
    for n in range(config.heads):
        keys, values = k[:, n // config.group], v[:, n // config.group]
        scores = capped(q[:, n] @ keys.T * scale, config.attention_cap)
        heads.append(softmax(np.where(mask, scores, -np.inf)) @ values)
    return linear(weights["o"], np.concatenate(heads, axis=-1))


def feed_forward(
    config: ModelConfig, spec: LayerSpec, weights: NumpyTree, x: Float[np.ndarray, "L D"]
) -> Float[np.ndarray, "L D"]:
    """Return down(silu(gate(x)) * up(x)), or the result of a mixture of such experts.

    `spec` says whether the layer has experts; `weights` are those of its feed-forward, by name.
    """
    experts = config.experts_of(spec)
    if experts is None:
        gate = activate(config, linear(weights["gate"], x))
        return linear(weights["down"], gate * linear(weights["up"], x))
    shares = softmax(linear(weights["router"], x))
    result = np.zeros_like(x)
    for row, share in enumerate(shares):
        used = np.argsort(-share, kind="stable")[: experts.used]
        total = share[used].sum() if experts.normed else 1.0
        for n in used:
            gate, up, down = (
                weights[name]["weight"][n].astype(x.dtype) for name in ("gate", "up", "down")
            )
            inner = activate(config, x[row] @ gate) * (x[row] @ up)
            result[row] += share[n] / total * (inner @ down)
    return result


def activate(config: ModelConfig, x: Float[np.ndarray, "*L F"]) -> Float[np.ndarray, "*L F"]:
    """Return the activation of `x` that `config` names: SiLU, or GELU by its tanh approximation."""
    if config.activation == "gelu_tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    with np.errstate(over="ignore"):  # exp(-x) may be inf: silu is then 0, which is right
        return x / (1 + np.exp(-x))


def capped(x: Float[np.ndarray, "L T"], cap: float | None) -> Float[np.ndarray, "L T"]:
    """Return cap * tanh(x / cap), which keeps numbers below the cap; `x` itself without a cap."""
    return x if cap is None else np.tanh(x / cap) * cap


def linear(weights: NumpyTree, x: Float[np.ndarray, "L I"]) -> Float[np.ndarray, "L O"]:
    """Multiply by a matrix [in out] and add the bias if there is one, in the dtype of `x`."""
    y = x @ weights["weight"].astype(x.dtype, copy=False)
    return y + weights["bias"].astype(x.dtype) if "bias" in weights else y


def normalize(
    config: ModelConfig, weights: NumpyTree | None, x: Float[np.ndarray, "*rows I"]
) -> Float[np.ndarray, "*rows I"]:
    """Return the RMSNorm of `x` over the last axis.

    `weights` are those of the norm; None: there is no norm, and `x` is returned.
    """
    if weights is None:
        return x
    square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(square + config.norm_eps) * weights["weight"].astype(x.dtype)


def softmax(x: Float[np.ndarray, "L T"]) -> Float[np.ndarray, "L T"]:
    """Return the softmax along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def visible(length: int, window: int | None) -> Bool[np.ndarray, "L T"]:
    """Return which positions (columns) each position (row) attends to: itself and earlier ones.

    `length` is the number of positions. `window` limits how many positions a row attends to; None:
    no limit.
    """
    age = np.arange(length)[:, None] - np.arange(length)[None, :]
    return (age >= 0) & (age < (window or length))


def rotate(
    rope: Rope, size: int | None, x: Float[np.ndarray, "L N H"]
) -> Float[np.ndarray, "L N H"]:
    """Rotate pair j = (x[j], x[j + size/2]) of every head by position * frequency[j].

    `size`: how many dimensions of a head are rotated; None: all.
    """
    x, still = x[..., :size], x[..., size or x.shape[-1] :]
    frequency, scale = frequencies(rope, x.shape[-1])
    angle = np.arange(len(x))[:, None, None] * frequency
    cos = (scale * np.cos(angle)).astype(x.dtype)
    sin = (scale * np.sin(angle)).astype(x.dtype)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos, still], axis=-1)


def frequencies(rope: Rope, head_dim: int) -> tuple[Float[np.ndarray, " pairs"], float]:
    """Return the angle per position of each pair of dimensions, and the factor of cos and sin.

    `head_dim` is the number of rotated dimensions of a head. The factor is a number by which both
    cos and sin are multiplied.
    """
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
        return base / np.array(rope.factors), rope.attention_factor or 1.0
    return base, 1.0


def llama3_frequencies(
    rope: Rope, base: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """Return Llama 3's frequencies: high ones kept, low ones divided by the factor of `rope`.

    Frequencies between are blended linearly by the turns that they make over the original context.
    `base` are the frequencies before this rule.
    """
    turns = rope.original_context * base / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0, 1)
    return keep * base + (1 - keep) * base / rope.factor


def yarn_frequencies(rope: Rope, base: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """Return YaRN's frequencies: high ones kept, low ones divided by the factor of `rope`.

    Between a first and a final pair, the two are blended linearly by the index of the pair. `base`
    are the frequencies before this rule.
    """
    pairs = len(base)

    def index_turning(turns: float) -> float:
        """Return the fractional index of the rotary pair with `turns` turns over the context."""
        wavelength = rope.original_context / turns
        return pairs * math.log(wavelength / (2 * math.pi)) / math.log(rope.theta)

    first = max(math.floor(index_turning(rope.beta_fast)), 0)
    final = min(math.ceil(index_turning(rope.beta_slow)), 2 * pairs - 1)
    slowed = (np.arange(pairs) - first) / max(final - first, 0.001)
    slowed = np.clip(slowed, 0, 1)
    return slowed * base / rope.factor + (1 - slowed) * base


def yarn_scale(rope: Rope) -> float:
    """Return the attention factor: the given one, or one that grows with log(factor)."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0
