"""Beam search: against every sequence there is, against arrays, and on a tiny model."""

import itertools
from functools import cache

import numpy as np
import pytest

from jaxllama.beams import SearchRules, search
from jaxllama.engine.engine import Engine
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Intake
from jaxllama.llm import LLM
from jaxllama.request import FinishReason
from jaxllama.testing import ByteTokenizer, numpy_llama, random_params
from jaxllama_formats.chatml import ChatMl
from tests.support import BODIES, MODEL, SEVEN, closed, new_engine, request, run

NONE = -1e9  # what a place that holds no answer is worth


class Chain:
    """A model whose next token depends on the two before it, and what it makes likely."""

    def __init__(self, seed: int, vocab: int) -> None:
        logits = np.random.default_rng(seed).normal(0, 1.5, (vocab + 1, vocab + 1, vocab))
        self.logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        self.vocab = vocab

    def after(self, tokens: tuple[int, ...]) -> np.ndarray:
        return self.logprobs[(-1, -1, *tokens)[-2:]]

    def expand(self, count: int):
        def expand(beginnings):
            rows = [self.after(tokens) for tokens in beginnings]
            return [[(int(i), float(row[i])) for i in row.argsort()[::-1][:count]] for row in rows]

        return expand

    def logprob(self, tokens: tuple[int, ...]) -> float:
        return sum(self.after(tokens[:place])[token] for place, token in enumerate(tokens))


def in_arrays(after, vocab: int, rules: SearchRules) -> list[tuple[tuple[int, ...], float]]:
    """The search as Hugging Face's generate does it: flat arrays over the whole vocabulary."""
    width, keep = rules.width, max(2, 1 + len(rules.end_ids)) * rules.width
    running = [()] * width
    scores = np.array([0.0] + [NONE] * (width - 1))
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, rules.max_tokens + 1):
        flat = (scores[:, None] + np.stack([after(each) for each in running])).ravel()
        top = np.argsort(-flat, kind="stable")[:keep]
        grown = [(*running[place // vocab], int(place % vocab)) for place in top]
        ends = np.array([each[-1] in rules.end_ids or length == rules.max_tokens for each in grown])
        for rank in np.flatnonzero(ends[:width]):
            if flat[top[rank]] > NONE / 2:
                value = flat[top[rank]] / float(length) ** rules.length_penalty
                finished.append((value, grown[rank]))
        finished = sorted(finished, key=lambda each: -each[0])[:width]
        order = np.argsort(-(flat[top] + NONE * 10 * ends), kind="stable")[:width]
        running, scores = [grown[place] for place in order], flat[top[order]]
        until = length
        if rules.early_stopping == "never" and rules.length_penalty > 0:
            until = rules.max_tokens
        worst = finished[-1][0] if len(finished) == width else NONE
        is_full = len(finished) == width and rules.early_stopping is True
        if is_full or scores[0] / float(until) ** rules.length_penalty <= worst or ends.all():
            break
    return [(tokens, score) for score, tokens in finished]


def all_rules() -> list[SearchRules]:
    rng = np.random.default_rng(3)
    return [
        SearchRules(
            width=int(rng.integers(1, 6)),
            max_tokens=int(rng.integers(1, 9)),
            end_ids=frozenset(rng.choice(7, rng.integers(0, 3), replace=False).tolist()),
            length_penalty=float(rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0])),
            early_stopping=[True, False, "never"][rng.integers(3)],
        )
        for _ in range(300)
    ]


def test_search_finds_what_the_search_over_arrays_finds():
    for seed, rules in enumerate(all_rules()):
        chain = Chain(seed, 7)
        found = search(chain.expand(rules.candidates), rules)
        expected = in_arrays(chain.after, 7, rules)
        assert [each.tokens for each in found] == [tokens for tokens, _ in expected], rules
        np.testing.assert_allclose([each.score for each in found], [score for _, score in expected])


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_width_of_the_whole_tree_finds_the_best_of_all(seed, penalty):
    chain, end, most = Chain(seed, 4), 3, 4
    rules = SearchRules(4**most, most, frozenset([end]), penalty, "never")
    every = [
        tokens
        for length in range(1, most + 1)
        for tokens in itertools.product(range(4), repeat=length)
        if end not in tokens[:-1] and (tokens[-1] == end or length == most)
    ]
    best = max(every, key=lambda tokens: chain.logprob(tokens) / len(tokens) ** penalty)
    found = search(chain.expand(4), rules)
    assert found[0].tokens == best
    assert {each.tokens for each in found} == set(every)


def test_a_width_of_one_is_greedy():
    chain, tokens = Chain(1, 5), ()
    for _ in range(6):
        tokens = (*tokens, int(chain.after(tokens).argmax()))
    (found,) = search(chain.expand(1), SearchRules(1, 6))
    assert found.tokens == tokens
    assert found.score == pytest.approx(chain.logprob(tokens) / 6)


def llm_of(engine: Engine) -> LLM:
    return LLM(engine, Intake(ByteTokenizer(), ChatMl(), engine.bank, engine.config), config=MODEL)


@cache
def model_after(prompt: tuple[int, ...], tokens: tuple[int, ...]) -> np.ndarray:
    logits = numpy_llama.logits(MODEL, random_params(MODEL), (*prompt, *tokens))[-1]
    return logits - np.logaddexp.reduce(logits)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("width", "early"), [(1, False), (3, True), (4, "never"), (6, False)])
def test_the_engine_finds_what_numpy_finds(body, width, early):
    engine = new_engine(MODEL, body)
    prompt, ends = tuple(range(60, 90)), frozenset([7, 70])
    rules = SearchRules(width, 6, ends, 0.8, early)
    found = llm_of(engine).beam_search(
        prompt,
        width=width,
        length_penalty=0.8,
        early_stopping=early,
        max_tokens=6,
        stop_ids=sorted(ends),
        ignore_eos=True,
    )
    expected = in_arrays(lambda tokens: model_after(prompt, tokens), MODEL.vocab_size, rules)
    whole = [tokens[:-1] if tokens[-1] in ends else tokens for tokens, _ in expected]
    assert [each.tokens for each in found] == whole
    np.testing.assert_allclose(
        [each.score for each in found], [score for _, score in expected], atol=2e-3
    )
    assert closed(engine)


def test_beginnings_are_copied_not_computed_again():
    engine = new_engine()
    prefilled = []
    original = engine.programs.prefill

    def prefill(state, slot, ids, start, count, *more):
        prefilled.append(int(count))
        return original(state, slot, ids, start, count, *more)

    engine.programs.prefill = prefill
    try:
        llm_of(engine).beam_search(list(range(60, 100)), width=4, max_tokens=8, ignore_eos=True)
    finally:
        del engine.programs.prefill
    assert sum(prefilled) == 39


def test_more_beginnings_than_slots_find_the_same():
    asked = {"width": 7, "max_tokens": 5, "ignore_eos": True}
    few, many = new_engine(), new_engine(MODEL, SEVEN)
    assert [each.tokens for each in llm_of(few).beam_search([1, 2, 3], **asked)] == [
        each.tokens for each in llm_of(many).beam_search([1, 2, 3], **asked)
    ]


def test_an_answer_that_ends_says_so():
    engine = new_engine()
    greedy = run(new_engine(), [request([1, 2, 3], 3)])[0].tokens
    (found,) = llm_of(engine).beam_search([1, 2, 3], width=1, max_tokens=9, stop_ids=[greedy[2]])
    assert found.tokens == tuple(greedy[: greedy.index(greedy[2])])
    assert found.finish_reason is FinishReason.END_TOKEN


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"width": 0}, r"width is 0; it must lie in \[1, 16\]"),
        ({"width": 16, "stop_ids": range(5), "ignore_eos": True}, "there are 5 end tokens"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'; expected true, false or"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; expected a finite number"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_what_cannot_be_is_refused(knobs, words):
    with pytest.raises(InvalidParameter, match=words):
        llm_of(new_engine()).beam_search([1, 2], **knobs)


# The search that settles one token after the other, as ExLlama's.


def settled_in_lists(chain: Chain, rules: SearchRules) -> tuple[int, ...]:
    """The same search, written without steps: every prefix is looked at anew for each token."""
    text: tuple[int, ...] = ()
    kept: list[tuple[int, ...]] = [()]
    while len(text) < rules.max_tokens and not (text and text[-1] in rules.end_ids):
        ahead = min(rules.beam_length, rules.max_tokens - len(text))
        while True:
            open_ = [each for each in kept if not (each and each[-1] in rules.end_ids)]
            if not open_ or len(open_[0]) >= ahead:
                break
            longer = [(*each, token) for each in open_ for token in range(chain.vocab)]
            kept = [each for each in kept if each not in open_] + longer
            kept.sort(key=lambda each: -chain.logprob((*text, *each)))
            kept = kept[: rules.width]
        text = (*text, kept[0][0])
        kept = [each[1:] for each in kept if each[0] == text[-1]]
    return text


@pytest.mark.parametrize("seed", range(40))
def test_the_search_that_settles_finds_what_plain_lists_find(seed):
    rng = np.random.default_rng(seed)
    chain = Chain(seed, 6)
    rules = SearchRules(
        width=int(rng.integers(1, 5)),
        max_tokens=int(rng.integers(1, 9)),
        end_ids=frozenset(rng.choice(6, rng.integers(0, 2), replace=False).tolist()),
        beam_length=int(rng.integers(1, 5)),
    )
    (found,) = search(chain.expand(chain.vocab), rules)
    assert found.tokens == settled_in_lists(chain, rules)
    assert found.logprob == pytest.approx(chain.logprob(found.tokens))


def test_looking_one_token_ahead_is_greedy():
    chain = Chain(0, 7)
    (found,) = search(chain.expand(7), SearchRules(width=4, max_tokens=5, beam_length=1))
    text: tuple[int, ...] = ()
    for _ in range(5):
        text = (*text, int(chain.after(text).argmax()))
    assert found.tokens == text
