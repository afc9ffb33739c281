"""Logit bias adds numbers to the logits of the tokens it names."""

import numpy as np
import pytest

from jaxllama.errors import InvalidParameter
from jaxllama.testing.tryout import Tryout
from tests.samplers.test_repetition import LOGITS, log_softmax, shares


def test_bias_is_added_to_the_named_tokens(four: Tryout):
    found = shares(four, LOGITS, [{"logit_bias": {0: -1.5, "3": 2.0}}])
    assert np.allclose(found, log_softmax(LOGITS + np.array([-1.5, 0, 0, 2.0])), atol=1e-6)


def test_extremes_exclude_a_token_or_make_it_certain(four: Tryout):
    choice = four.choose([LOGITS] * 2, [{"logit_bias": {0: -100}}, {"logit_bias": {1: 100}}])
    assert choice.token[0] != 0
    assert choice.token[1] == 1


def test_greedy_choice_follows_the_bias(four: Tryout):
    choice = four.choose(LOGITS, [{"logit_bias": {2: 5.0}}], temperature=0.0)
    assert choice.token[0] == 2


def test_named_token_with_bias_zero_stays_as_it_is(four: Tryout):
    found = shares(four, LOGITS, [{"logit_bias": {0: 0.0}}])
    assert np.allclose(found, log_softmax(LOGITS), atol=1e-6)


@pytest.mark.parametrize(
    "bias",
    [
        {4: 1.0},
        {-1: 1.0},
        {"-1": 1.0},
        {"1e0": 1.0},
        {"٣": 1.0},
        {"9" * 5000: 1.0},
        {True: 1.0},
        {1.0: 1.0},
        {0: float("nan")},
        {0: float("inf")},
        {0: 1e30},
        {0: "1"},
        {0: None},
        {1: 0.5, "1": 0.5},
        {str(n): 0.0 for n in range(1025)},
        [1, 2],
        3.0,
        "1",
    ],
    ids=lambda bias: str(bias)[:20],
)
def test_hostile_bias_is_refused_by_name(four: Tryout, bias: object):
    with pytest.raises(InvalidParameter, match="logit_bias") as caught:
        four.bank.check({"logit_bias": bias})
    assert caught.value.field == "logit_bias"


def test_agrees_with_numpy_on_random_rows(many: Tryout):
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(300, 50)) * 3
    biases = np.where(rng.random((300, 50)) < 0.2, rng.uniform(-9, 9, (300, 50)), 0)
    knobs = [{"logit_bias": {int(i): float(row[i]) for i in np.flatnonzero(row)}} for row in biases]
    assert np.allclose(shares(many, logits, knobs), log_softmax(logits + biases), atol=1e-4)
