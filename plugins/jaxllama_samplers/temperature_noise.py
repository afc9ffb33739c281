"""Temperature noise: a random factor on every logit, as in LLaMbA."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class TemperatureNoise(Adjuster):
    """Multiply every logit by its own random number.

    The factors are uniform in [1 - max(0, (n - 1) / 2), 1 + n / 5) for n = temperature_noise;
    for tokens that end the answer they are at most 1. LLaMbA's Quick and Standard samplers then
    take the largest logit: set temperature to 0 for that. LLaMbA rounds n to twentieths and
    reuses 64 sets of factors; here n is exact and every step has its own factors.
    """

    order = 90  # after all other adjusters

    temperature_noise: Knob = knob(
        off=0.0,
        low=0.0,
        high=2.0,
        help="multiply each logit by a random factor of this spread; with temperature 0 nothing "
        "else is random; 0 = off",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Multiply each logit by a random factor of its own."""
        low = 1 - jnp.maximum(0.0, (self.temperature_noise - 1) / 2)
        high = 1 + self.temperature_noise / 5
        factors = low + (high - low) * uniform_numbers(context.chance, logits.shape[0])
        capped = factors.at[context.stop_ids].min(1.0, mode="drop")
        return logits * capped


def uniform_numbers(chance: Float[Array, ""], count: int) -> Float[Array, " V"]:
    """Derive `count` uniform numbers in [0, 1) from the random number `chance`.

    A fast integer hash of the index and of `chance` makes them.
    """
    seed = hash_bits(jax.lax.bitcast_convert_type(chance, jnp.uint32))
    places = jnp.arange(count, dtype=jnp.uint32)
    return (hash_bits(hash_bits(places) ^ seed) >> 8).astype(jnp.float32) * 2.0**-24


def hash_bits(bits: Array) -> Array:
    """Hash 32-bit numbers one to one; every result bit depends on every bit of the argument."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
