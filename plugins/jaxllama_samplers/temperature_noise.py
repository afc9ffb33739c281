"""Temperature noise: LLaMbA's temperature, a random factor on every logit."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class TemperatureNoise(Adjuster):
    """Multiply every logit by its own random number; with temperature 0 the largest is taken.

    The factors are uniform in [1 - max(0, (n - 1) / 2), 1 + n / 5) for n = temperature_noise;
    for tokens that end the answer they are at most 1. LLaMbA's Quick and Standard samplers draw
    like this and take the largest: set temperature to 0 for that. LLaMbA rounds n to twentieths
    and recycles 64 sets of factors; here n is exact and every step has factors of its own.
    """

    order = 90  # on what every other adjuster has made of the logits

    temperature_noise: Knob = knob(
        off=0.0,
        low=0.0,
        high=2.0,
        help="multiply each logit by a random factor of this spread; with temperature 0 nothing "
        "else is random; 0 = off",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The logits, each multiplied."""
        low = 1 - jnp.maximum(0.0, (self.temperature_noise - 1) / 2)
        high = 1 + self.temperature_noise / 5
        factors = low + (high - low) * numbers(context.chance, logits.shape[0])
        capped = factors.at[context.stop_ids].min(1.0, mode="drop")
        return logits * capped


def numbers(chance: Float[Array, ""], count: int) -> Float[Array, " V"]:
    """As many uniform numbers in [0, 1), all decided by one; an integer hash, which is fast."""
    seed = mixed(jax.lax.bitcast_convert_type(chance, jnp.uint32))
    places = jnp.arange(count, dtype=jnp.uint32)
    return (mixed(mixed(places) ^ seed) >> 8).astype(jnp.float32) * 2.0**-24


def mixed(bits: Array) -> Array:
    """Every bit of a 32-bit number depends on every bit of the given one, and none is lost."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
