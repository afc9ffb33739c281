"""Min tokens holds end tokens back until the answer is long enough."""

import numpy as np

from jaxllama.testing.tryout import Tryout, survivors
from tests.samplers.test_repetition import LOGITS, shares


def test_end_tokens_are_banned_until_the_answer_is_long_enough(four: Tryout):
    choice = four.choose(
        [LOGITS] * 4, {"min_tokens": 2}, stop_ids=[0, 3], length=[5, 6, 7, 8], prompt=5
    )
    kept = [survivors(choice, row) for row in range(4)]
    assert kept == [[2, 1], [2, 1], [0, 2, 3, 1], [0, 2, 3, 1]]


def test_greedy_takes_the_best_that_does_not_end(four: Tryout):
    choice = four.choose(LOGITS, [{"min_tokens": 1}], stop_ids=[0], temperature=0.0)
    assert choice.token[0] == 2


def test_without_end_tokens_nothing_changes(four: Tryout):
    assert np.array_equal(shares(four, LOGITS, [{"min_tokens": 9}]), shares(four, LOGITS, [{}]))


def test_ban_is_final_even_against_a_bias(four: Tryout):
    knobs = [{"min_tokens": 1, "logit_bias": {0: 100}}]
    assert survivors(four.choose(LOGITS, knobs, stop_ids=[0])) == [2, 3, 1]


def test_banning_every_token_fails_the_row_and_no_other(four: Tryout):
    stop_ids = [[0, 1, 2, 3], [0]]
    choice = four.choose([LOGITS] * 2, {"min_tokens": 1}, stop_ids=stop_ids)
    assert choice.finite.tolist() == [False, True]
    assert choice.token[0] == 0
    assert choice.token[1] in (1, 2, 3)


def test_min_length_holds_line_breaks_back_too(four: Tryout):
    # Token 1 is "No\n".
    choice = four.choose([[1.0, 9.0, 8.0, 2.0]] * 3, LENGTHS, prompt=1, **ROWS)
    assert choice.token.tolist() == [3, 2, 1]


LENGTHS = [{"min_length": 3}, {"min_length": 3, "min_tokens": 1}, {"min_length": 3}]
ROWS = {"length": [2, 2, 4], "stop_ids": [[2], [0], [0]], "temperature": 0.0}
