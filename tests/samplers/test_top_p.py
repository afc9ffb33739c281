"""Top-p keeps the nucleus, and the token that crosses its edge."""

import numpy as np

from jaxllama.testing.tryout import Tryout, survivors
from tests.samplers.rows import ROUNDS, descending, random_logits

SHARES = np.log([0.125, 0.5, 0.25, 0.125])


def test_nucleus_ends_with_the_token_that_crosses_the_line(four: Tryout):
    choice = four.choose([SHARES] * 5, [{"top_p": p} for p in (0.4, 0.6, 0.74, 0.76, 0.9)])
    kept = [survivors(choice, row) for row in range(5)]
    assert kept == [[1], [1, 2], [1, 2], [1, 2, 0], [1, 2, 0, 3]]


def test_line_that_is_met_exactly_needs_no_further_token(four: Tryout):
    choice = four.choose([SHARES] * 2, [{"top_p": 0.5}, {"top_p": 0.75}])
    assert [survivors(choice, row) for row in range(2)] == [[1], [1, 2]]


def test_strict_nucleus_ends_before_the_token_that_crosses_the_line(four: Tryout):
    lines = (0.4, 0.6, 0.75, 0.76, 0.9)
    choice = four.choose([SHARES] * 5, [{"top_p": p, "top_p_strict": True} for p in lines])
    assert [survivors(choice, row) for row in range(5)] == [[1], [1], [1, 2], [1, 2], [1, 2, 0]]


def test_one_keeps_everything_and_zero_the_likeliest(four: Tryout):
    choice = four.choose([SHARES] * 2, [{"top_p": 1.0}, {"top_p": 0.0}])
    assert survivors(choice, 0) == [1, 2, 0, 3]
    assert survivors(choice, 1) == [1]


def test_looks_at_what_top_k_left(four: Tryout):
    # Of 0.5 and 0.25 the first holds two thirds.
    choice = four.choose([SHARES] * 2, [{"top_k": 2, "top_p": p} for p in (0.6, 0.7)])
    assert [survivors(choice, row) for row in range(2)] == [[1], [1, 2]]


def nucleus(logits: np.ndarray, line: float, *, strict: bool) -> list[int]:
    """Token by token, likeliest first."""
    order, p = descending(logits)
    total, kept = 0.0, []
    for token, share in zip(order.tolist(), p, strict=True):
        if strict and kept and total + share > line:
            break
        kept.append(token)
        total += share
        if total >= line:
            break
    return kept


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(2)
    for _ in range(ROUNDS):
        logits, lines, strict = random_logits(rng), rng.random(300), rng.random(300) < 0.5
        knobs = [
            {"top_p": float(line), "top_p_strict": bool(drop)}
            for line, drop in zip(lines, strict, strict=True)
        ]
        choice = many.choose(logits, knobs)
        for row, line in enumerate(lines):
            assert survivors(choice, row) == nucleus(logits[row], line, strict=strict[row])
