"""The random_numbers give the numbers of `jax.random`."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.engine.choosing import random_numbers


def test_numbers_are_those_of_jax():
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**32, (500, 2), np.uint32)
    lengths = rng.integers(0, 2**31, 500).astype(np.int32)
    names = rng.integers(0, 2**32, 500, np.uint32)

    def ours(seed, length, name):
        key = random_numbers.fold_in((seed[0], seed[1]), length)
        return random_numbers.uniform(key), random_numbers.uniform(
            random_numbers.fold_in(key, name)
        )

    def theirs(seed, length, name):
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), length)
        other = jax.random.fold_in(key, name)
        return tuple(jax.random.uniform(each, dtype=jnp.float32) for each in (key, other))

    for one, other in zip(
        jax.jit(jax.vmap(ours))(seeds, lengths, names),
        jax.jit(jax.vmap(theirs))(seeds, lengths, names),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
