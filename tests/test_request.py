"""Requests: the seeds of several streams of one prompt."""

from jaxllama.limits import MAX_SEED
from jaxllama.request import choice_seed


def test_first_stream_has_the_seed_of_the_request():
    assert choice_seed(7, 0) == 7


def test_streams_of_one_prompt_have_seeds_of_their_own_within_the_bound():
    seeds = [choice_seed(MAX_SEED, index) for index in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
