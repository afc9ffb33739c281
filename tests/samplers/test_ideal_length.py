"""Ideal length holds ends back before an answer has its length, and hurries them after."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import log_softmax, shares

LOGITS = np.array([2.0, -1.0, 1.0, 0.5])


def moved(four: Tryout, generated: int, ideal: int) -> np.ndarray:
    fields = {"stop_ids": [1], "length": generated + 1, "prompt": 1}
    return shares(four, LOGITS, {"ideal_length": ideal}, **fields)


@pytest.mark.origin("LLaMbA: the ideal length of an answer")
def test_end_tokens_move_by_the_distance_from_the_ideal(four: Tryout):
    for generated, by in ((2, -50.0), (4, 0.0), (5, 25.0)):
        expected = log_softmax(LOGITS + np.array([0, by, 0, 0]))
        assert np.allclose(moved(four, generated, 4), expected, atol=1e-4)


def test_end_token_that_nobody_expects_is_left_alone(four: Tryout):
    logits = np.array([20.0, 0.0, 1.0, 0.5])  # token 1 has 2e-9
    fields = {"stop_ids": [1], "length": 10, "prompt": 1}
    found = shares(four, logits, {"ideal_length": 1}, **fields)
    assert np.allclose(found, log_softmax(logits), atol=1e-4)
