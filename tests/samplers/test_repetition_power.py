"""Repetition power multiplies a logit once per occurrence."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import log_softmax, random_logits, shares

LOGITS = np.array([2.0, -1.0, 1.0, 0.5])


@pytest.mark.origin("RLLaMA: its repetition penalty, on every token")
def test_each_occurrence_multiplies_once_more(four: Tryout):
    found = shares(four, LOGITS, {"repetition_power": 0.5}, tokens=[0, 1, 0], length=3)
    assert np.allclose(found, log_softmax([[0.5, -0.5, 1.0, 0.5]]), atol=1e-6)


def test_agrees_with_numpy_on_random_rows(many: Tryout):
    rng = np.random.default_rng(16)
    logits, tokens = random_logits(rng), rng.integers(0, 50, (300, 16))
    lengths, powers = rng.integers(1, 17, 300), rng.uniform(0.5, 1.2, 300)
    knobs = [{"repetition_power": float(power)} for power in powers]
    found = shares(many, logits, knobs, tokens=tokens.tolist(), length=lengths)
    for row in range(300):
        counts = np.bincount(tokens[row, : lengths[row]], minlength=50)
        expected = log_softmax(logits[row] * powers[row] ** counts)
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)
