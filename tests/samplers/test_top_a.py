"""Top-a's floor is a share of the top probability squared."""

import numpy as np

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, random_logits, softmax

SHARES = np.log([0.0625, 0.5, 0.25, 0.1875])


def test_floor_is_a_share_of_the_square(four: Tryout):
    # max squared is 0.25: the floors are 0.0625, 0.2 and 0.25.
    found = kept(four, [SHARES] * 3, [{"top_a": a} for a in (0.25, 0.8, 1.0)])
    assert found == [[0, 1, 2, 3], [1, 2], [1, 2]]


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(11)
    for _ in range(ROUNDS):
        logits, floors = random_logits(rng), rng.random(300)
        found = kept(many, logits, [{"top_a": float(a)} for a in floors])
        p = softmax(logits)
        line = floors[:, None] * p.max(-1, keepdims=True) ** 2
        assert found == [np.flatnonzero(row).tolist() for row in p >= line]
