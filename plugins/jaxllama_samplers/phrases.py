"""Phrases in one array, separated by NO_TOKEN; used by samplers whose knob is a list of phrases."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN
from jaxllama.shapes import Array, Int


def places_in_phrase(phrases: Int[Array, " W"]) -> Int[Array, " W"]:
    """Return the position of every token within its phrase, 0 for the first."""
    index = jnp.arange(phrases.shape[0], dtype=jnp.int32)
    starts = jnp.pad(jnp.where(phrases == NO_TOKEN, index + 1, 0)[:-1], (1, 0))
    return index - jax.lax.cummax(starts)
