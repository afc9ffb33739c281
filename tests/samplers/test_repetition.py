"""The repetition penalty weakens tokens that occurred, whatever their sign."""

import numpy as np

from jaxllama.testing.tryout import Tryout

LOGITS = np.array([2.0, -1.0, 1.0, 0.5])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def shares(tryout: Tryout, logits: np.ndarray, knobs: object, **fields: object) -> np.ndarray:
    """Log-probabilities as sampled, by token id."""
    choice = tryout.choose(logits, knobs, **fields)
    order = np.argsort(choice.sampled_ids, axis=-1)
    return np.take_along_axis(choice.sampled_logprobs, order, -1)


def test_positive_logits_are_divided_and_negative_multiplied(four: Tryout):
    found = shares(four, LOGITS, [{"repetition_penalty": 2.0}], tokens=[0, 1], length=2)
    assert np.allclose(found, log_softmax(np.array([1.0, -2.0, 1.0, 0.5])), atol=1e-6)


def test_occurring_twice_weighs_no_more_than_once(four: Tryout):
    found = shares(four, LOGITS, [{"repetition_penalty": 2.0}], tokens=[0, 0, 0], length=3)
    assert np.allclose(found, log_softmax(np.array([1.0, -1.0, 1.0, 0.5])), atol=1e-6)


def test_prompt_and_answer_both_count_but_nothing_past_the_length(four: Tryout):
    knobs = [{"repetition_penalty": 2.0}]
    found = shares(four, LOGITS, knobs, tokens=[0, 2, 3, 3], length=2, prompt=1)
    assert np.allclose(found, log_softmax(np.array([1.0, -1.0, 0.5, 0.5])), atol=1e-6)


def test_window_forgets_older_tokens(four: Tryout):
    knobs = [{"repetition_penalty": 2.0, "repetition_window": n} for n in (1, 2, 0)]
    found = shares(four, np.array([LOGITS] * 3), knobs, tokens=[0, 2, 3], length=3)
    expected = [[2.0, -1.0, 1.0, 0.25], [2.0, -1.0, 0.5, 0.25], [1.0, -1.0, 0.5, 0.25]]
    assert np.allclose(found, log_softmax(np.array(expected)), atol=1e-6)


def test_window_alone_changes_nothing(four: Tryout):
    found = shares(four, LOGITS, [{"repetition_window": 2}], tokens=[0, 1], length=2)
    assert np.allclose(found, log_softmax(LOGITS), atol=1e-6)


def test_agrees_with_numpy_on_random_rows(many: Tryout):
    rng = np.random.default_rng(4)
    logits, tokens = rng.normal(size=(300, 50)) * 3, rng.integers(0, 50, (300, 16))
    lengths, windows = rng.integers(1, 17, 300), rng.integers(0, 17, 300)
    penalties = rng.uniform(0.5, 2.0, 300)
    knobs = [
        {"repetition_penalty": float(p), "repetition_window": int(w)}
        for p, w in zip(penalties, windows, strict=True)
    ]
    found = shares(many, logits, knobs, tokens=tokens.tolist(), length=lengths)
    for row in range(300):
        seen = tokens[row, : lengths[row]]
        newest = seen[-windows[row] :] if windows[row] else seen
        expected = logits[row].copy()
        for token in set(newest.tolist()):
            positive = expected[token] > 0
            expected[token] *= 1 / penalties[row] if positive else penalties[row]
        assert np.allclose(found[row], log_softmax(expected), atol=1e-4)
