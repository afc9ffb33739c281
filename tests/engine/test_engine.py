"""The engine's step loop: admission, prefixes, endings, limits."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxllama.engine.generation import Phase
from jaxllama.engine.probes import finish
from jaxllama.errors import PromptTooLong, QueueFull
from jaxllama.request import FinishReason
from jaxllama.testing import FAMILIES, random_params
from tests.support import (
    BODIES,
    ENGINE,
    MODEL,
    QuickPrograms,
    Told,
    closed,
    drive,
    new_engine,
    request,
    run,
)


def test_more_requests_than_slots_all_finish():
    engine = new_engine()
    answers = run(engine, [request([i, i + 1, i + 2], 5) for i in range(20)])
    assert all(len(answer.tokens) == 5 for answer in answers)
    assert closed(engine)


def test_max_tokens_ends_with_length():
    told = run(new_engine(), [request([1, 2, 3], 7)])[0]
    assert told.finished.reason is FinishReason.LENGTH
    assert told.finished.usage.generated == 7


def test_end_token_is_counted_but_not_told():
    whole = run(new_engine(), [request([1, 2, 3], 8)])[0].tokens
    end = whole[4]
    first = whole.index(end)
    told = run(new_engine(), [request([1, 2, 3], 8, stop_ids=(end,))])[0]
    assert told.tokens == whole[:first]
    assert told.finished.reason is FinishReason.END_TOKEN
    assert told.finished.usage.generated == first + 1


def test_prompt_of_one_token_needs_no_prefill():
    assert len(run(new_engine(), [request([5], 4)])[0].tokens) == 4


def test_next_turn_reuses_the_freed_slot():
    engine = new_engine()
    first = run(engine, [request(range(50), 6)])[0]
    told = run(engine, [request([*range(50), *first.tokens, 9], 3)])[0]
    assert told.finished.usage.reused >= 50 + 5
    fresh = run(new_engine(), [request([*range(50), *first.tokens, 9], 3)])[0]
    assert told.tokens == fresh.tokens


def test_requests_that_arrive_together_compute_a_common_beginning_once():
    engine = new_engine()
    stem = list(range(100))
    answers = run(engine, [request([*stem, 200 + i], 3) for i in range(4)])
    reused = sorted(answer.finished.usage.reused for answer in answers)
    assert reused == [0, 100, 100, 100]
    alone = [run(new_engine(), [request([*stem, 200 + i], 3)])[0] for i in range(4)]
    assert [one.tokens for one in answers] == [one.tokens for one in alone]


def test_only_true_prefixes_are_shared():
    """The same tokens at the same places behind another beginning are something else."""
    engine = new_engine()
    tail = list(range(60, 100))
    both = run(engine, [request([1, *tail], 4), request([2, *tail], 4)])
    alone = [run(new_engine(), [request([i, *tail], 4)])[0] for i in (1, 2)]
    assert [one.tokens for one in both] == [one.tokens for one in alone]
    assert both[1].finished.usage.reused == 0


def test_shared_beginning_survives_the_cancellation_of_its_first_owner():
    engine = new_engine()
    stem = list(range(120))
    told: dict[int, Told] = {}
    leader = engine.submit(request([*stem, 1], 4))
    follower = engine.submit(request([*stem, 2], 4))
    drive(engine, told, 2)
    engine.cancel(leader)
    drive(engine, told)
    assert told[follower.id].tokens == run(new_engine(), [request([*stem, 2], 4)])[0].tokens
    assert closed(engine)


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_cancelled_generation_frees_its_slot_in_every_phase(steps):
    engine = new_engine()
    told: dict[int, Told] = {}
    generation = engine.submit(request(range(100), 50))
    drive(engine, told, steps)
    engine.cancel(generation)
    assert generation.phase is Phase.DONE
    drive(engine, told)
    assert told[generation.id].finished.reason is FinishReason.CANCELLED
    assert closed(engine)


def test_cancelling_twice_is_nothing():
    engine = new_engine()
    generation = engine.submit(request([1], 3))
    engine.cancel(generation)
    engine.cancel(generation)
    drive(engine, {})
    assert engine.ledger["cancelled"] == 1


def test_full_queue_refuses():
    engine = new_engine(MODEL, dataclasses.replace(ENGINE, queue_limit=3))
    for _ in range(3):
        engine.submit(request([1]))
    with pytest.raises(QueueFull, match="limit is 3"):
        engine.submit(request([1]))


@pytest.mark.parametrize(
    ("length", "new", "word"),
    [(200, 1, "accepts 1 to 199"), (150, 51, "holds 200"), (0, 1, "0 tok")],
)
def test_what_does_not_fit_a_slot_is_refused(length, new, word):
    with pytest.raises(PromptTooLong, match=word):
        new_engine().submit(request(range(length), new))


def test_context_can_be_filled_to_the_last_token():
    told = run(new_engine(), [request(range(150), 50)])[0]
    assert len(told.tokens) == 50


def test_long_prompt_stalls_others_by_one_chunk_only():
    """Between two decode calls at most one prefill chunk is sent."""
    engine = new_engine()
    calls = []
    for name in ("prefill", "decode"):
        original = getattr(engine.programs, name)

        def noted(*args, name=name, original=original):
            calls.append(name)
            return original(*args)

        setattr(engine.programs, name, noted)
    try:
        told: dict[int, Told] = {}
        engine.submit(request([1, 2], 40))
        drive(engine, told, 2)
        del calls[:]
        engine.submit(request(range(190), 2))
        drive(engine, told)
    finally:
        del engine.programs.prefill, engine.programs.decode
    pairs = list(itertools.pairwise(calls))
    assert calls.count("prefill") == 6
    assert ("prefill", "prefill") not in pairs


def test_short_prompt_is_not_stuck_behind_a_long_one():
    engine = new_engine()
    long = engine.submit(request(range(190), 2))
    short = engine.submit(request([7, 8, 9], 2))
    order = []
    while not engine.idle:
        order += [event.id for event in engine.step()]
    assert order.index(short.id) < order.index(long.id)


def test_peek_agrees_with_the_logprobs_of_generation():
    engine = new_engine()
    told = run(engine, [request(range(30), 10)])[0]
    logprobs, logits = finish(engine.probes.peek([*range(30), *told.tokens], 30))
    assert np.allclose(logprobs, told.logprobs, atol=1e-5)
    assert logits.shape == (MODEL.vocab_size,)
    assert engine.slots.claimed == 0


def test_peek_in_a_warm_slot_gives_the_same():
    engine = new_engine()
    ids = list(range(64))
    first, _ = finish(engine.probes.peek(ids, 1))
    second, _ = finish(engine.probes.peek(ids, 20))
    assert np.allclose(first[19:], second, atol=1e-6)


def test_a_look_sees_the_logits_of_every_place():
    engine = new_engine()
    ids, seen = list(range(100)), []  # more than one tile
    logprobs, last = finish(engine.probes.peek(ids, 30, seen.append))
    logits = np.concatenate(seen)
    assert (logits[-1] == last).all()
    totals = np.logaddexp.reduce(logits[:-1], axis=1)
    assert np.allclose(logits[np.arange(70), ids[30:]] - totals, logprobs, atol=1e-5)


@pytest.mark.parametrize("engine", BODIES)
def test_an_embedding_is_what_the_head_reads(engine):
    """Its product with a token's vector is that token's logit: the head is tied."""
    engine = new_engine(engine=engine)
    ids = list(range(100))  # more than one tile
    _, last = finish(engine.probes.embed(ids))
    _, logits = finish(engine.probes.peek(ids, 99))
    table = random_params(MODEL)["embed"]["weight"]
    spread = np.abs(logits).max()
    assert np.allclose(table @ last, logits, atol=spread / 50)  # the kernels round to 8 bits
    assert engine.slots.claimed == 0


def test_an_embedding_does_not_depend_on_what_is_cached():
    engine = new_engine()
    ids = list(range(70))
    first = finish(engine.probes.embed(ids))
    run(engine, [request(ids, 3)])
    again = finish(engine.probes.embed(ids))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def test_a_mean_embedding_is_the_mean_of_all_tokens():
    engine = new_engine()
    ids = [5, 9, 200]
    each = [finish(engine.probes.embed(ids[: count + 1]))[1] for count in range(3)]
    assert np.allclose(finish(engine.probes.embed(ids))[0], np.mean(each, axis=0), atol=1e-5)


def test_rows_of_another_family_decode_too():
    """Normed queries and keys, and a window."""
    window = FAMILIES["mistral"].window
    assert window < 40
    model = dataclasses.replace(FAMILIES["qwen3"], max_context=512, window=window)
    engine = new_engine(model, samplers=(), kind=QuickPrograms)
    told = run(engine, [request(range(40), 5)])[0]
    assert len(told.tokens) == 5
