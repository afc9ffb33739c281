"""The uniform random number of a row at a step, bit for bit that of `jax.random`.

Used inside the decode program. On CPU, JAX runs the rounds of its generator as a loop of a hundred
small steps, which takes as long as a pass over the logits; unrolled, they are one step.
"""

import functools

import jax
import jax.numpy as jnp

from jaxllama.shapes import Array, Float, Int32, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
ROUNDS = 5  # of four rotations each
PARITY = 0x1BD11BDA
FRACTION, ONE = 9, 0x3F800000  # 23 random bits after the exponent of 1.0

Words = tuple[UInt32[Array, ""], UInt32[Array, ""]]


def fold_in(key: Words, number: Int32[Array, ""] | int) -> Words:
    """Return what `jax.random.fold_in(key, number)` returns for a threefry key of two words."""
    return threefry(key, (jnp.uint32(0), jnp.asarray(number).astype(jnp.uint32)))


def uniform(key: Words) -> Float[Array, ""]:
    """Return what `jax.random.uniform(key)` returns: one float32 in [0, 1)."""
    high, low = threefry(key, (jnp.uint32(0), jnp.uint32(0)))
    bits = ((high ^ low) >> FRACTION) | jnp.uint32(ONE)
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0


@functools.partial(jax.jit, inline=True)  # the same program; out of one, a call and not a hundred
def threefry(key: Words, block: Words) -> Words:
    """Encrypt a block of two words with Threefry-2x32 of Random123, in twenty rounds.

    `key` is two words, too. Returns the two encrypted words.
    """
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(PARITY))
    first, second = block[0] + schedule[0], block[1] + schedule[1]
    for turn in range(ROUNDS):
        for distance in ROTATIONS[turn % 2]:
            first = first + second
            second = first ^ ((second << distance) | (second >> (32 - distance)))
        first = first + schedule[(turn + 1) % 3]
        second = second + schedule[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return first, second
