"""Top-n-sigma's floor hangs below the best logit by standard deviations."""

import numpy as np

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, random_logits

LOGITS = np.array([1.0, 3.0, 1.0, -1.0])  # the deviation is the square root of 2


def test_floor_is_so_many_deviations_below_the_best(four: Tryout):
    found = kept(four, [LOGITS] * 3, [{"top_n_sigma": n} for n in (1.0, 1.5, 3.0)])
    assert found == [[1], [0, 1, 2], [0, 1, 2, 3]]


def test_temperature_makes_no_difference(four: Tryout):
    found = kept(four, [LOGITS] * 2, {"top_n_sigma": 1.5}, temperature=[0.1, 5.0])
    assert found == [[0, 1, 2]] * 2


def test_banned_tokens_do_not_widen_the_floor(four: Tryout):
    logits = [1.0, 3.0, -np.inf, -np.inf]  # the deviation of what is left is 1
    found = kept(four, [logits] * 2, [{"top_n_sigma": 1.9}, {"top_n_sigma": 2.1}])
    assert found == [[1], [0, 1]]


def test_equal_logits_all_stay(four: Tryout):
    assert kept(four, np.zeros(4), {"top_n_sigma": 0.1}) == [[0, 1, 2, 3]]


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(13)
    for _ in range(ROUNDS):
        logits, sigmas = random_logits(rng), rng.uniform(0.1, 4, 300)
        found = kept(many, logits, [{"top_n_sigma": float(n)} for n in sigmas])
        line = logits.max(-1) - sigmas * logits.astype(np.float64).std(-1)
        assert found == [np.flatnonzero(row).tolist() for row in logits >= line[:, None]]
