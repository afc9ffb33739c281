"""Banned and allowed tokens."""

import numpy as np

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, random_logits


def test_banned_tokens_are_never_drawn(four: Tryout):
    assert kept(four, np.zeros(4), {"banned_tokens": [2, 0]}) == [[1, 3]]


def test_only_allowed_tokens_are_drawn(four: Tryout):
    assert kept(four, np.zeros(4), {"allowed_tokens": [2, 0]}) == [[0, 2]]


def test_a_token_both_allowed_and_banned_is_banned(four: Tryout):
    assert kept(four, np.zeros(4), {"allowed_tokens": [2, 0], "banned_tokens": [0]}) == [[2]]


def test_lists_that_leave_nothing_are_not_obeyed(four: Tryout):
    knobs = [{"banned_tokens": [0, 1, 2, 3]}, {"allowed_tokens": [1], "banned_tokens": [1]}]
    assert kept(four, np.zeros((2, 4)), knobs) == [[0, 1, 2, 3]] * 2


def test_bans_hold_at_temperature_zero(four: Tryout):
    choice = four.choose([9.0, 1.0, 2.0, 0.0], {"banned_tokens": [0]}, temperature=0.0)
    assert choice.token.tolist() == [2]


def test_agree_with_sets_on_random_rows(many: Tryout):
    rng = np.random.default_rng(21)
    for _ in range(ROUNDS):
        lists = [
            {
                "banned_tokens": rng.integers(0, 50, rng.integers(0, 30)).tolist(),
                "allowed_tokens": rng.integers(0, 50, rng.integers(0, 60)).tolist(),
            }
            for _ in range(300)
        ]
        found = kept(many, random_logits(rng), lists)
        for row, each in enumerate(lists):
            free = set(each["allowed_tokens"]) or set(range(50))
            free -= set(each["banned_tokens"])
            assert found[row] == sorted(free or range(50))
