"""Top-k keeps the k likeliest tokens."""

import numpy as np

from jaxllama.testing.tryout import Tryout, survivors

SHARES = np.log([0.1, 0.4, 0.2, 0.3])


def test_only_the_k_likeliest_survive(four: Tryout):
    choice = four.choose([SHARES] * 4, [{"top_k": k} for k in (1, 2, 3, 4)])
    kept = [survivors(choice, row) for row in range(4)]
    assert kept == [[1], [1, 3], [1, 3, 2], [1, 3, 2, 0]]


def test_zero_and_more_than_all_keep_everything(four: Tryout):
    choice = four.choose([SHARES] * 2, [{"top_k": 0}, {"top_k": 1000}])
    assert survivors(choice, 0) == survivors(choice, 1) == [1, 3, 2, 0]


def test_survivors_are_renormalised(four: Tryout):
    choice = four.choose(SHARES, [{"top_k": 2}])
    assert np.allclose(np.exp(choice.sampled_logprobs[0]), [4 / 7, 3 / 7, 0, 0])


def test_lower_id_wins_among_equals(four: Tryout):
    assert survivors(four.choose(np.zeros(4), [{"top_k": 2}])) == [0, 1]


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(1)
    logits, ks = rng.normal(size=(300, 50)) * 3, rng.integers(1, 60, 300)
    choice = many.choose(logits, [{"top_k": int(k)} for k in ks])
    for row, k in enumerate(ks):
        assert survivors(choice, row) == np.argsort(-logits[row])[:k].tolist()
