"""Rotary position embedding and every rule that stretches it to long contexts.

Called by `llama.py` with positions; knows the rule, not the model. The attention operation rotates.
"""

import math

import jax.numpy as jnp
import numpy as np

from jaxllama.config import Rope
from jaxllama.shapes import Array, Float, Int


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Return the angle per position of each pair (float64), and the scale of cos and sin."""
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
            return plain / np.asarray(rope.factors), 1.0
        case "llama3":
            return llama3(rope, plain), 1.0
        case "yarn":
            return yarn(rope, plain, head_dim)


def llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Slow the long waves down by `factor`, keep the short ones, blend in between."""
    wavelength = 2 * math.pi / plain
    low, high = rope.low_freq_factor, rope.high_freq_factor
    blend = np.clip((rope.original_context / wavelength - low) / (high - low), 0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def yarn(rope: Rope, plain: np.ndarray, head_dim: int) -> tuple[np.ndarray, float]:
    """Interpolate pairs that turn seldom within the trained context, keep those that turn often."""

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


def tables(
    rope: Rope, head_dim: int, position: Int[Array, " L"]
) -> tuple[Float[Array, "L U"], Float[Array, "L U"]]:
    """Return cosines and sines at each position, times the rotary rule's scale, in float32."""
    angles, scale = frequencies(rope, head_dim)
    # float32: bfloat16 rounds position 257 to 256
    turned = position.astype(jnp.float32)[:, None] * jnp.asarray(angles, jnp.float32)
    return jnp.cos(turned) * scale, jnp.sin(turned) * scale
