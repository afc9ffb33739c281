"""Top-p keeps the nucleus, and the token that crosses its edge."""

import numpy as np

from jaxllama.testing.tryout import Tryout, survivors

SHARES = np.log([0.125, 0.5, 0.25, 0.125])


def test_nucleus_ends_with_the_token_that_crosses_the_line(four: Tryout):
    choice = four.choose([SHARES] * 5, [{"top_p": p} for p in (0.4, 0.6, 0.74, 0.76, 0.9)])
    kept = [survivors(choice, row) for row in range(5)]
    assert kept == [[1], [1, 2], [1, 2], [1, 2, 0], [1, 2, 0, 3]]


def test_line_that_is_met_exactly_needs_no_further_token(four: Tryout):
    choice = four.choose([SHARES] * 2, [{"top_p": 0.5}, {"top_p": 0.75}])
    assert [survivors(choice, row) for row in range(2)] == [[1], [1, 2]]


def test_one_keeps_everything_and_zero_the_likeliest(four: Tryout):
    choice = four.choose([SHARES] * 2, [{"top_p": 1.0}, {"top_p": 0.0}])
    assert survivors(choice, 0) == [1, 2, 0, 3]
    assert survivors(choice, 1) == [1]


def test_looks_at_what_top_k_left(four: Tryout):
    # Of 0.5 and 0.25 the first holds two thirds.
    choice = four.choose([SHARES] * 2, [{"top_k": 2, "top_p": p} for p in (0.6, 0.7)])
    assert [survivors(choice, row) for row in range(2)] == [[1], [1, 2]]


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(2)
    logits, lines = rng.normal(size=(300, 50)) * 3, rng.random(300)
    choice = many.choose(logits, [{"top_p": float(p)} for p in lines])
    for row, line in enumerate(lines):
        p = np.exp(logits[row]) / np.exp(logits[row]).sum()
        order, total, expected = np.argsort(-p), 0.0, []
        for token in order:
            expected.append(int(token))
            total += p[token]
            if total >= line:
                break
        assert survivors(choice, row) == expected
