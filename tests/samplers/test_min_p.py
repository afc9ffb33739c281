"""Min-p drops tokens that are far less likely than the likeliest."""

import numpy as np

from jaxllama.testing.tryout import Tryout, survivors

SHARES = np.log([0.0625, 0.5, 0.25, 0.1875])


def test_floor_is_a_share_of_the_likeliest(four: Tryout):
    choice = four.choose([SHARES] * 4, [{"min_p": p} for p in (0.6, 0.45, 0.3, 0.1)])
    kept = [survivors(choice, row) for row in range(4)]
    assert kept == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 0]]


def test_zero_keeps_everything_and_one_the_likeliest(four: Tryout):
    choice = four.choose([SHARES] * 2, [{"min_p": 0.0}, {"min_p": 1.0}])
    assert survivors(choice, 0) == [1, 2, 3, 0]
    assert survivors(choice, 1) == [1]


def test_one_keeps_all_that_are_equally_likely(four: Tryout):
    assert survivors(four.choose(np.zeros(4), [{"min_p": 1.0}])) == [0, 1, 2, 3]


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(3)
    logits, floors = rng.normal(size=(300, 50)) * 3, rng.random(300) * 0.3
    choice = many.choose(logits, [{"min_p": float(p)} for p in floors])
    for row, floor in enumerate(floors):
        above = np.exp(logits[row] - logits[row].max()) >= floor
        assert sorted(survivors(choice, row)) == np.flatnonzero(above).tolist()
