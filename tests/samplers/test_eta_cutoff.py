"""Eta cutoff's floor sinks with the entropy."""

import numpy as np

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, random_logits, softmax

SHARES = np.log([0.5, 0.25, 0.125, 0.125])  # exp(-entropy) is 0.297


def test_floor_is_eta_or_what_the_entropy_makes_of_it(four: Tryout):
    # min(0.04, 0.2 * 0.297) = 0.04; min(0.25, 0.5 * 0.297) = 0.149; min(1, 0.297) = 0.297.
    found = kept(four, [SHARES] * 3, [{"eta_cutoff": eta} for eta in (0.04, 0.25, 1.0)])
    assert found == [[0, 1, 2, 3], [0, 1], [0]]


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(32)
    for _ in range(ROUNDS):
        logits, etas = random_logits(rng), rng.uniform(1e-5, 0.3, 300)
        found = kept(many, logits, [{"eta_cutoff": float(eta)} for eta in etas])
        p = softmax(logits)
        entropy = -(p * np.log(p)).sum(-1)
        floor = np.minimum(etas, np.sqrt(etas) * np.exp(-entropy))[:, None]
        keep = (p >= floor) | (p == p.max(-1, keepdims=True))
        assert found == [np.flatnonzero(row).tolist() for row in keep]
