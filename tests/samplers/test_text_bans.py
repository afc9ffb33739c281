"""Bans by what is written in a token. The texts are "a", "No\\n", " I" and "x:"."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import log_softmax, shares

LOGITS = np.array([2.0, -1.0, 1.0, 0.5])


def lowered(four: Tryout, knobs: dict[str, object], **fields: object) -> list[int]:
    """The tokens that lost 100."""
    found = shares(four, LOGITS, knobs, **fields)[0] - log_softmax(LOGITS)
    return np.flatnonzero(found - found.max() < -99).tolist()


def test_tokens_with_a_line_break_are_banned(four: Tryout):
    assert lowered(four, {"ban_newlines": True}) == [1]


def test_tokens_with_a_capital_are_banned(four: Tryout):
    assert lowered(four, {"ban_capitals": True}) == [1, 2]


@pytest.mark.origin("LLaMbA: bans of refusals, lines and capitals")
def test_refusals_are_banned_for_the_first_tokens(four: Tryout):
    at = [lowered(four, {"ban_refusals": 2}, length=5, prompt=prompt) for prompt in (5, 4, 3)]
    assert at == [[1, 2], [1, 2], []]


def test_answer_does_not_end_while_refusals_are_banned(four: Tryout):
    fields = {"stop_ids": [3], "length": 5}
    assert lowered(four, {"ban_refusals": 2}, prompt=4, **fields) == [1, 2, 3]
    assert lowered(four, {"ban_newlines": True}, prompt=4, **fields) == [1]


def test_banning_everything_leaves_the_order_as_it_was(four: Tryout):
    logits = np.array([-np.inf, 1.0, 2.0, -np.inf])
    choice = four.choose(logits, {"ban_capitals": True}, temperature=0.0)
    assert choice.token.tolist() == [2]


def test_dry_sees_no_repetition_across_a_breaker(four: Tryout):
    # "0 3 0 3": token 3 holds a colon.
    knobs = {"dry_multiplier": 5.0, "dry_allowed_length": 1}
    rows = {"tokens": [0, 3, 2, 0, 3], "length": 5}
    found = shares(four, LOGITS, knobs, **rows)
    assert np.allclose(found, log_softmax(LOGITS), atol=1e-6)


def test_dry_breakers_take_the_place_of_the_usual_ones(four: Tryout):
    knobs = {"dry_multiplier": 5.0, "dry_base": 2.0, "dry_allowed_length": 1}
    rows = {"tokens": [0, 3, 2, 0, 3], "length": 5}
    for breakers, penalty in (([1], 10.0), ([0], 5.0), ([3], 0.0)):
        found = shares(four, LOGITS, knobs | {"dry_breakers": breakers}, **rows)
        expected = log_softmax(LOGITS - np.array([0, 0, penalty, 0]))
        assert np.allclose(found, expected, atol=1e-5)
