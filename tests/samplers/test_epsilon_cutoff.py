"""Epsilon cutoff drops what is less likely than a fixed probability."""

import numpy as np

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, random_logits, softmax

SHARES = np.log([0.0625, 0.5, 0.25, 0.1875])


def test_floor_is_a_probability(four: Tryout):
    found = kept(four, [SHARES] * 3, [{"epsilon_cutoff": e} for e in (0.05, 0.1, 0.2)])
    assert found == [[0, 1, 2, 3], [1, 2, 3], [1, 2]]


def test_likeliest_survives_any_floor(four: Tryout):
    assert kept(four, SHARES, {"epsilon_cutoff": 1.0}) == [[1]]


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(12)
    for _ in range(ROUNDS):
        logits, floors = random_logits(rng), rng.uniform(1e-6, 0.1, 300)
        found = kept(many, logits, [{"epsilon_cutoff": float(e)} for e in floors])
        p = softmax(logits)
        keep = (p >= floors[:, None]) | (p == p.max(-1, keepdims=True))
        assert found == [np.flatnonzero(row).tolist() for row in keep]
