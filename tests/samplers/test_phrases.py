"""Banned strings and positional repeat inhibition: samplers that are given phrases."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, log_softmax, random_logits, shares

LOGITS = np.array([2.0, -1.0, 1.0, 0.5])


def test_the_end_of_a_phrase_is_banned_after_the_rest_of_it(four: Tryout):
    knobs = {"banned_strings": [[0, 1, 2], [3, 2, 1]]}
    rows = [[3, 0, 1], [0, 3, 2], [0, 1, 0], [1, 2, 0]]
    found = kept(four, [LOGITS] * 4, knobs, tokens=rows, length=3)
    assert found == [[0, 1, 3], [0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_phrase_of_one_token_is_always_banned(four: Tryout):
    assert kept(four, LOGITS, {"banned_strings": [[3], [2, 1]]}) == [[0, 1, 2]]


def test_a_phrase_longer_than_the_row_is_no_match(four: Tryout):
    knobs = {"banned_strings": [[0, 0, 0, 1]]}
    found = kept(four, [LOGITS] * 3, knobs, tokens=[0] * 4, length=[1, 2, 3])
    assert found == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3]]


def test_phrases_that_leave_nothing_are_not_obeyed(four: Tryout):
    assert kept(four, LOGITS, {"banned_strings": [[t] for t in range(4)]}) == [[0, 1, 2, 3]]


def test_banned_strings_agree_with_a_naive_search(many: Tryout):
    rng = np.random.default_rng(22)
    for _ in range(ROUNDS):
        tokens, lengths = rng.integers(0, 3, (300, 16)), rng.integers(1, 17, 300)
        phrases = [
            [rng.integers(0, 3, rng.integers(1, 6)).tolist() for _ in range(rng.integers(1, 9))]
            for _ in range(300)
        ]
        knobs = [{"banned_strings": each} for each in phrases]
        found = kept(many, random_logits(rng), knobs, tokens=tokens.tolist(), length=lengths)
        for row, each in enumerate(phrases):
            seen = tokens[row, : lengths[row]].tolist()
            banned = {
                phrase[-1]
                for phrase in each
                if len(phrase) == 1 or seen[-(len(phrase) - 1) :] == phrase[:-1]
            }
            assert found[row] == [token for token in range(50) if token not in banned]


def test_earlier_answers_weaken_their_token_at_the_same_step(four: Tryout):
    knobs = {
        "positional_repetition_penalty": 2.0,
        "positional_repeat_inhibit": [[0, 1, 3], [0, 2], [1]],
    }
    rows = {"tokens": [3, 0, 0, 0, 0], "length": [1, 2, 3, 4], "prompt": 1}
    found = shares(four, [LOGITS] * 4, knobs, **rows)
    expected = [[1.0, -2.0, 1.0, 0.5], [2.0, -2.0, 0.5, 0.5], [2.0, -1.0, 1.0, 0.25], LOGITS]
    assert np.allclose(found, log_softmax(np.array(expected)), atol=1e-6)


@pytest.mark.origin("basilisk: positional repetition")
def test_positional_inhibition_agrees_with_numpy_on_random_rows(many: Tryout):
    rng = np.random.default_rng(23)
    for _ in range(ROUNDS):
        logits, generated = random_logits(rng), rng.integers(0, 6, 300)
        answers = [
            [rng.integers(0, 50, rng.integers(1, 7)).tolist() for _ in range(rng.integers(1, 20))]
            for _ in range(300)
        ]
        penalties = rng.uniform(0.5, 2, 300)
        knobs = [
            {"positional_repetition_penalty": float(p), "positional_repeat_inhibit": each}
            for p, each in zip(penalties, answers, strict=True)
        ]
        found = shares(many, logits, knobs, length=generated + 1, prompt=1)
        for row, step in enumerate(generated):
            expected = logits[row].astype(np.float64)
            for token in {each[step] for each in answers[row] if len(each) > step}:
                positive = expected[token] > 0
                expected[token] *= 1 / penalties[row] if positive else penalties[row]
            np.testing.assert_allclose(found[row], log_softmax(expected), rtol=1e-4, atol=1e-4)
