"""The repetition penalty weakens tokens that occurred, whatever their sign."""

import numpy as np

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, log_softmax, random_logits, shares

LOGITS = np.array([2.0, -1.0, 1.0, 0.5])


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
    knobs = [{"repetition_penalty": 2.0, "repetition_window": n} for n in (1, 2, -1)]
    found = shares(four, np.array([LOGITS] * 3), knobs, tokens=[0, 2, 3], length=3)
    expected = [[2.0, -1.0, 1.0, 0.25], [2.0, -1.0, 0.5, 0.25], [1.0, -1.0, 0.5, 0.25]]
    assert np.allclose(found, log_softmax(np.array(expected)), atol=1e-6)


def test_window_of_no_token_penalises_nothing(four: Tryout):
    knobs = [{"repetition_penalty": 2.0, "repetition_window": 0}]
    found = shares(four, LOGITS, knobs, tokens=[0, 1], length=2)
    assert np.allclose(found, log_softmax(LOGITS), atol=1e-6)


def test_penalty_fades_from_the_newest_token_where_the_window_holds_none(four: Tryout):
    # ExLlama with sustain 0 and decay 4: ages 0, 1, 2 and 3 have 4, 3, 2 and 1 quarters of it.
    knobs = {"repetition_penalty": 2.0, "repetition_window": 0, "repetition_decay": 4}
    found = shares(four, np.full(4, 3.0), knobs, tokens=[0, 1, 2, 3], length=4)
    assert np.allclose(found, log_softmax(3.0 / np.array([1.25, 1.5, 1.75, 2.0])), atol=1e-6)


def test_window_alone_changes_nothing(four: Tryout):
    found = shares(four, LOGITS, [{"repetition_window": 2}], tokens=[0, 1], length=2)
    assert np.allclose(found, log_softmax(LOGITS), atol=1e-6)


def test_sign_blind_penalty_divides_negative_logits_too(four: Tryout):
    knobs = [{"repetition_penalty": 2.0, "repetition_sign_blind": True}]
    found = shares(four, LOGITS, knobs, tokens=[0, 1], length=2)
    assert np.allclose(found, log_softmax(np.array([1.0, -0.5, 1.0, 0.5])), atol=1e-6)


def test_penalty_fades_out_behind_the_window(four: Tryout):
    # Ages of tokens 0, 1, 2 and 3 are 3, 2, 1 and 0; behind a window of 2 half the way is 1.5.
    logits, tokens = np.full((2, 4), 3.0), [0, 1, 2, 3]
    knobs = {"repetition_penalty": 2.0, "repetition_window": 2, "repetition_decay": 2}
    found = shares(four, logits, knobs, tokens=tokens, length=4)
    assert np.allclose(found, log_softmax(np.array([2.0, 1.5, 1.5, 1.5])), atol=1e-6)


def test_newest_occurrence_counts_where_the_penalty_fades(four: Tryout):
    knobs = {"repetition_penalty": 2.0, "repetition_window": 1, "repetition_decay": 4}
    found = shares(four, np.full(4, 3.0), knobs, tokens=[0, 1, 0], length=3)
    assert np.allclose(found, log_softmax(np.array([1.5, 1.5, 3.0, 3.0])), atol=1e-6)


def penalised(logits: np.ndarray, seen: list[int], knobs: dict[str, object]) -> np.ndarray:
    """Newest token first, as ExLlama walks."""
    window, decay = knobs["repetition_window"], knobs["repetition_decay"]
    top, moved, done = knobs["repetition_penalty"], logits.astype(np.float64), set()
    for age, token in enumerate(reversed(seen)):
        fade = min(max((age - window) / decay, 0), 1) if decay else float(age >= window)
        factor = top if window < 0 else top + (1 - top) * fade
        if token not in done:
            done.add(token)
            divides = moved[token] > 0 or knobs["repetition_sign_blind"]
            moved[token] *= 1 / factor if divides else factor
    return moved


def test_agrees_with_numpy_on_random_rows(many: Tryout):
    rng = np.random.default_rng(4)
    for _ in range(ROUNDS):
        logits, tokens = random_logits(rng), rng.integers(0, 50, (300, 16))
        lengths = rng.integers(1, 17, 300)
        knobs = [
            {
                "repetition_penalty": float(rng.uniform(0.5, 2.0)),
                "repetition_window": int(rng.integers(-1, 17)),
                "repetition_decay": int(rng.integers(0, 9)),
                "repetition_sign_blind": bool(rng.random() < 0.5),
            }
            for _ in range(300)
        ]
        found = shares(many, logits, knobs, tokens=tokens.tolist(), length=lengths)
        for row in range(300):
            expected = penalised(logits[row], tokens[row, : lengths[row]].tolist(), knobs[row])
            np.testing.assert_allclose(found[row], log_softmax(expected), rtol=1e-4, atol=1e-4)
