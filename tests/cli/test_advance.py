"""The rate and the time left of a run."""

import pytest

from jaxllama.cli.advance import Advance, duration


def test_the_time_left_follows_from_what_this_run_did():
    now = [0.0]
    advance = Advance("prompts", 100, already=40, clock=lambda: now[0])
    assert advance.words(40) == "40 of 100 prompts"
    now[0] = 10.0
    assert advance.words(60) == "60 of 100 prompts, 2.0/s, 20 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59.6, "1 min 0 s"), (5, "5 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")],
)
def test_a_duration_has_its_two_largest_units(seconds, words):
    assert duration(seconds) == words
