"""Presence and frequency penalties look at the answer, not at the prompt."""

import numpy as np

from jaxllama.testing.tryout import Tryout
from tests.samplers.test_repetition import LOGITS, log_softmax, shares

ROW = {"tokens": [3, 0, 0, 2, 1], "length": 4, "prompt": 1}  # the answer holds 0, 0 and 2


def test_presence_is_subtracted_once(four: Tryout):
    found = shares(four, LOGITS, [{"presence_penalty": 0.5}], **ROW)
    assert np.allclose(found, log_softmax(LOGITS - np.array([0.5, 0, 0.5, 0])), atol=1e-6)


def test_frequency_is_subtracted_per_occurrence(four: Tryout):
    found = shares(four, LOGITS, [{"frequency_penalty": 0.5}], **ROW)
    assert np.allclose(found, log_softmax(LOGITS - np.array([1.0, 0, 0.5, 0])), atol=1e-6)


def test_both_add_up_and_may_be_negative(four: Tryout):
    knobs = [{"presence_penalty": 1.0, "frequency_penalty": -0.25}]
    found = shares(four, LOGITS, knobs, **ROW)
    assert np.allclose(found, log_softmax(LOGITS - np.array([0.5, 0, 0.75, 0])), atol=1e-6)


def test_fresh_answer_is_untouched(four: Tryout):
    knobs = [{"presence_penalty": 2.0, "frequency_penalty": 2.0}]
    found = shares(four, LOGITS, knobs, tokens=[0, 1, 2], length=3, prompt=3)
    assert np.allclose(found, log_softmax(LOGITS), atol=1e-6)


def test_newest_prompt_tokens_count_by_their_place_where_they_are_asked_for(four: Tryout):
    # Of the prompt 3, 1, 1, 2 the newest three count: 1/4 and 2/4 for token 1, 3/4 for token 2.
    knobs = [{"frequency_penalty": 1.0, "presence_penalty": 0.5, "prompt_penalty_window": 3}]
    found = shares(four, LOGITS, knobs, tokens=[3, 1, 1, 2, 2, 0], length=5, prompt=4)
    expected = LOGITS - np.array([0, 0.75 + 0.5, 1.75 + 0.5, 0])
    assert np.allclose(found, log_softmax(expected), atol=1e-6)


def test_agrees_with_numpy_on_random_rows(many: Tryout):
    rng = np.random.default_rng(5)
    logits, tokens = rng.normal(size=(300, 50)) * 3, rng.integers(0, 50, (300, 16))
    lengths = rng.integers(1, 17, 300)
    prompts = np.array([rng.integers(1, n, endpoint=True) for n in lengths])
    presence, frequency = rng.uniform(-2, 2, (2, 300))
    knobs = [
        {"presence_penalty": float(p), "frequency_penalty": float(f)}
        for p, f in zip(presence, frequency, strict=True)
    ]
    rows = {"tokens": tokens.tolist(), "length": lengths, "prompt": prompts}
    found = shares(many, logits, knobs, **rows)
    for row in range(300):
        count = np.bincount(tokens[row, prompts[row] : lengths[row]], minlength=50)
        expected = logits[row] - frequency[row] * count - presence[row] * (count > 0)
        assert np.allclose(found[row], log_softmax(expected), atol=1e-4)
