"""Contrasts: answers that are moved away from what another prompt would say."""

import dataclasses

import numpy as np
import pytest

from jaxllama.engine.engine import Engine
from jaxllama.engine.probes import finish
from jaxllama.errors import InvalidParameter, PromptTooLong
from jaxllama.request import Contrast, FinishReason
from tests.engine.test_recovery import Faulty, poison
from tests.support import (
    BODIES,
    ENGINE,
    MODEL,
    SEVEN,
    Told,
    closed,
    drive,
    new_engine,
    programs,
    request,
    run,
)

OWN, OTHER = tuple(range(40, 75)), tuple(range(90, 101))
SCALES = [-0.5, 0.0, 1.5, 4.0]


def contrasted(scale: float = 3.0, max_tokens: int = 8, own=OWN, **more):
    return request(own, max_tokens, contrast=Contrast(OTHER, scale), **more)


def by_hand(engine: Engine, scale: float, answer: list[int]) -> np.ndarray:
    """The formula, on what two separate looks say behind the same answer."""
    own, other = (
        finish(engine.probes.peek([*prompt, *answer], len(prompt) + len(answer)))[1]
        for prompt in (OWN, OTHER)
    )
    logits = other + scale * (own - other)
    return logits - np.logaddexp.reduce(logits.astype(np.float64))


def crowd() -> list:
    """Others, with and without a contrast, of all kinds."""
    return [
        request([1, 2, 3], 12, temperature=1.0, seed=4),
        contrasted(2.0, 9, temperature=0.9, seed=7, knobs={"top_k": 5, "repetition_penalty": 1.3}),
        request(OWN, 5),
        contrasted(-1.0, 7, own=range(20)),
        request(OTHER, 12, temperature=1.2, seed=9, knobs={"top_p": 0.8}),
    ]


@pytest.mark.origin("ExLlama: classifier-free guidance")
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("body", BODIES)
def test_greedy_answer_is_that_of_two_runs_mixed_by_hand(body, scale):
    told = run(new_engine(MODEL, body), [contrasted(scale)])[0]
    looks, answer = new_engine(MODEL, body), []
    for _ in range(8):
        answer.append(int(by_hand(looks, scale, answer).argmax()))
    assert told.tokens == answer


@pytest.mark.parametrize("body", BODIES)
def test_log_probabilities_are_those_of_the_mixed_logits(body):
    told = run(new_engine(MODEL, body), [contrasted(2.5)])[0]
    looks = new_engine(MODEL, body)
    expected = [
        by_hand(looks, 2.5, told.tokens[:place])[token] for place, token in enumerate(told.tokens)
    ]
    np.testing.assert_allclose(told.logprobs, expected, atol=2e-3)


@pytest.mark.parametrize("body", BODIES)
def test_scale_1_says_what_no_contrast_says_and_others_do_not(body):
    plain, same, moved = (
        run(new_engine(MODEL, body), [one])[0].tokens
        for one in (request(OWN, 12), contrasted(1.0, 12), contrasted(6.0, 12))
    )
    assert plain == same
    assert plain != moved


@pytest.mark.parametrize("body", BODIES)
def test_everybody_says_in_a_crowd_what_they_say_alone(body):
    alone = [run(new_engine(MODEL, body), [one])[0] for one in crowd()]
    together = run(new_engine(MODEL, body), crowd())
    tolerance = 0.0 if body.kernels == "cpu" else 1e-5
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=tolerance)


def test_more_pairs_than_slots_all_finish():
    engine = new_engine(MODEL, SEVEN)
    answers = run(engine, [contrasted(2.0, 4, own=range(i, i + 9)) for i in range(9)])
    assert all(answer.finished.reason is FinishReason.LENGTH for answer in answers)
    assert closed(engine)


def test_whoever_needs_two_slots_is_not_passed_by():
    engine = new_engine()
    first = [engine.submit(request([i], 4 + 8 * (i == 0))) for i in range(4)]
    pair, last = engine.submit(contrasted()), engine.submit(request([9], 2))
    told: dict[int, Told] = {}
    while pair.slot < 0:
        drive(engine, told, 1)
        assert last.slot < 0 or pair.slot >= 0
    drive(engine, told)
    assert len(told) == len(first) + 2
    assert closed(engine)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6])
def test_cancelling_frees_both_slots_in_every_phase(steps):
    engine = new_engine()
    told: dict[int, Told] = {}
    pair = engine.submit(contrasted(2.0, 60, own=range(100)))
    drive(engine, told, steps)
    engine.cancel(pair)
    assert engine.slots.claimed == 0
    drive(engine, told)
    after = run(engine, crowd())
    assert [one.tokens for one in after] == [one.tokens for one in run(new_engine(), crowd())]
    assert closed(engine)


def test_next_turn_reuses_both_slots():
    engine = new_engine()
    first = run(engine, [contrasted(2.0, 6)])[0]
    held = sorted(len(slot.cached) for slot in engine.slots.slots)
    assert held[-2:] == [len(OTHER) + 5, len(OWN) + 5]
    later = request([*OWN, *first.tokens, 9], 5, contrast=Contrast((*OTHER, *first.tokens, 9), 2.0))
    again = run(engine, [later])[0]
    assert again.finished.usage.reused >= len(OWN) + 5
    assert again.tokens == run(new_engine(), [later])[0].tokens


@pytest.mark.parametrize("nth", range(1, 24, 3))
def test_one_fault_at_any_call_changes_no_text(nth):
    engine = Engine(Faulty(programs(), lambda _name, calls, _args: calls == nth))
    expected = run(new_engine(), crowd())
    answers = run(engine, crowd())
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert closed(engine)


@pytest.mark.parametrize("part", [0, 1])
def test_numbers_that_are_none_in_either_row_fail_the_request_and_clean_both(part):
    engine = new_engine()
    told: dict[int, Told] = {}
    pair, neighbour = engine.submit(contrasted(2.0, 20)), engine.submit(request([5, 6], 20))
    drive(engine, told, 5)
    slots = [each.slot for each in pair.parts]
    poison(engine, slots[part])
    drive(engine, told)
    assert told[pair.id].finished.reason is FinishReason.FAILED
    assert told[neighbour.id].tokens == run(new_engine(), [request([5, 6], 20)])[0].tokens
    assert [len(engine.slots.slots[slot].cached) for slot in slots] == [0, 0]
    assert [one.tokens for one in run(engine, crowd())] == [
        one.tokens for one in run(new_engine(), crowd())
    ]


def test_what_does_not_fit_is_refused():
    single = new_engine(MODEL, dataclasses.replace(ENGINE, slots=1))
    with pytest.raises(InvalidParameter, match=r"needs 2 slots at a time.*has 1"):
        single.submit(contrasted())
    with pytest.raises(PromptTooLong, match="prompt has 199 tokens and max_tokens is 8"):
        new_engine().submit(request([1], 8, contrast=Contrast((5,) * 199, 2.0)))
