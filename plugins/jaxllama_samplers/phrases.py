"""Phrases in a row of a program: where each begins. Shared by samplers that are given phrases."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN
from jaxllama.shapes import Array, Int


def places_in_phrase(phrases: Int[Array, " W"]) -> Int[Array, " W"]:
    """The place of every token within its own phrase: 0 for the first."""
    index = jnp.arange(phrases.shape[0], dtype=jnp.int32)
    starts = jnp.pad(jnp.where(phrases == NO_TOKEN, index + 1, 0)[:-1], (1, 0))
    return index - jax.lax.cummax(starts)
