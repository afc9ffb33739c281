"""Rotary position embedding and every rule that stretches it to long contexts.

Called by `llama.py` with positions; knows rules and shapes, no weights. The attention operation
rotates.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import InvalidParameter
from jaxllama.shapes import Array, Float, Int

LARGEST_OVERRIDE = 1e9
MAX_CONTEXT = 2**31 - 1


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Return the angle per position of each rotated pair, float64, and a factor for cos and sin.

    `head_dim` is how many numbers of a head rotate.
    """
    pairs = np.arange(head_dim // 2) * 2 / head_dim
    plain = rope.theta**-pairs
    match rope.kind:
        case "none":
            return plain, 1.0
        case "linear":
            return plain / rope.factor, 1.0
        case "ntk":
            stretched = rope.theta * rope.factor ** (head_dim / (head_dim - 2))
            return stretched**-pairs, 1.0
        case "factors":
            return plain / np.asarray(rope.factors), rope.attention_factor or 1.0
        case "llama3":
            return llama3(rope, plain), 1.0
        case "yarn":
            return yarn(rope, plain, head_dim)


def llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Return Llama 3's frequencies: low ones divided by `rope.factor`, high ones kept.

    Frequencies in between are blended. `plain` are the frequencies before this rule.
    """
    wavelength = 2 * math.pi / plain
    low, high = rope.low_freq_factor, rope.high_freq_factor
    blend = np.clip((rope.original_context / wavelength - low) / (high - low), 0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def yarn(rope: Rope, plain: np.ndarray, head_dim: int) -> tuple[np.ndarray, float]:
    """Return YaRN's frequencies, and the factor for cos and sin.

    Frequencies of pairs that turn seldom within the trained context are divided by `rope.factor`,
    those of pairs that turn often are kept. `plain` are the frequencies before this rule;
    `head_dim` is how many numbers of a head rotate.
    """

    def pair_with_turns(turns: float) -> float:
        ratio = rope.original_context / (turns * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    first = max(math.floor(pair_with_turns(rope.beta_fast)), 0)
    last = min(math.ceil(pair_with_turns(rope.beta_slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - first) / max(last - first, 0.001), 0, 1)
    scale = rope.attention_factor
    if scale is None:
        scale = 0.1 * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0
    return plain / rope.factor * ramp + plain * (1 - ramp), scale


def fitted(config: ModelConfig, context: int) -> ModelConfig:
    """Return the config with the rope factors, long or short, that fit `context` tokens per slot.

    The choice is made once, not by the length of each text: keys in the cache keep their rotation.
    """
    rope = config.rope
    if not rope.long_factors:
        return config
    factors = rope.long_factors if context > rope.original_context else rope.factors
    return dataclasses.replace(
        config, rope=dataclasses.replace(rope, factors=factors, long_factors=())
    )


def overridden(
    config: ModelConfig,
    scale: float | None = None,
    alpha: float | None = None,
    theta: float | None = None,
) -> ModelConfig:
    """Return the config with a caller's changes to its rotary embedding; None changes nothing.

    `scale` divides positions, in place of the model's own rule for long texts. `alpha` stretches
    the base by the NTK rule. `theta` replaces the base. `scale` and `alpha` also multiply the
    longest context. Layers with a rotation of their own (Gemma 3) keep it. Raises InvalidParameter
    for a value out of range.
    """
    given = {"rope_scale": scale, "rope_alpha": alpha, "rope_theta": theta}
    for name, value in given.items():
        low = 1.0 if name == "rope_theta" else 0.0
        if value is not None and not low < value <= LARGEST_OVERRIDE:
            raise InvalidParameter(
                f"{name} is {value}; it must be a number above {low:g}, at most "
                f"{LARGEST_OVERRIDE:g}",
                name,
            )
    if scale is None and alpha is None and theta is None:
        return config
    rotated = config.rotated
    if alpha is not None and rotated <= 2:  # noqa: PLR2004 - the exponent has no value
        raise InvalidParameter(
            f"rope_alpha is {alpha}; a model that rotates {rotated} numbers of a head takes none",
            "rope_alpha",
        )
    base = config.rope.theta if theta is None else theta
    if alpha is not None:
        base *= alpha ** (rotated / (rotated - 2))
    rope = dataclasses.replace(config.rope, theta=base)
    if scale is not None:
        rope = Rope(base) if scale == 1 else Rope(base, "linear", scale)
    longest = round(config.max_context * (scale or 1.0) * (alpha or 1.0))
    return dataclasses.replace(config, rope=rope, max_context=max(1, min(longest, MAX_CONTEXT)))


def layer_tables(
    config: ModelConfig, rope: Rope | None, position: Int[Array, " L"]
) -> tuple[Float[Array, "L U"], Float[Array, "L U"]]:
    """Return the cosines and the sines of one layer for each position and each pair of a head.

    `rope` is the layer's rotation, None: no pair rotates. Pairs that do not rotate get cosine 1 and
    sine 0.
    """
    rows, half = position.shape[0], config.head_dim // 2
    if rope is None:
        return jnp.ones((rows, half)), jnp.zeros((rows, half))
    cos, sin = tables(rope, config.rotated, position)
    if config.rotated == config.head_dim:
        return cos, sin
    still = ((0, 0), (0, half - config.rotated // 2))
    return jnp.pad(cos, still, constant_values=1), jnp.pad(sin, still)


def pair_up(x: Float[Array, "L N H"], rotated: int) -> Float[Array, "L N H"]:
    """Reorder the numbers of each head so that the two of a rotated pair lie half a head apart.

    In `x` they lie half of `rotated` apart, among the first `rotated` numbers of the head.
    Attention scores do not change if queries and keys are reordered alike.
    """
    half, rest = rotated // 2, (x.shape[-1] - rotated) // 2
    first, second, still, left = jnp.split(x, (half, rotated, rotated + rest), axis=-1)
    return jnp.concatenate([first, still, second, left], axis=-1)


def tables(
    rope: Rope, head_dim: int, position: Int[Array, " L"]
) -> tuple[Float[Array, "L U"], Float[Array, "L U"]]:
    """Return cosines and sines at each position, times the rotary rule's scale, in float32.

    `head_dim` is how many numbers of a head rotate; the tables have a column for each pair.
    """
    angles, scale = frequencies(rope, head_dim)
    # float32: bfloat16 rounds position 257 to 256
    turned = position.astype(jnp.float32)[:, None] * jnp.asarray(angles, jnp.float32)
    return jnp.cos(turned) * scale, jnp.sin(turned) * scale
