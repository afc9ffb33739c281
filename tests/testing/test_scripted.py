"""The scripted engine says its script, and goes wrong where the script says so."""

import math

import numpy as np
import pytest

from jaxllama.engine.probes import finish
from jaxllama.errors import GenerationFailed, PromptTooLong
from jaxllama.request import Finished, FinishReason, GenerationRequest, Token
from jaxllama.testing import ScriptedEngine
from jaxllama.testing.byte_tokenizer import END_ID

HELLO = GenerationRequest(prompt=(72, 105), max_tokens=20, temperature=0.0, stop_ids=(END_ID,))


def request(**changes) -> GenerationRequest:
    return GenerationRequest(**({"prompt": (72, 105), "max_tokens": 20} | changes))


def drain(engine: ScriptedEngine) -> dict[int, tuple[bytes, Finished]]:
    """Everything said, by generation."""
    said: dict[int, list[int]] = {}
    ends: dict[int, Finished] = {}
    for _ in range(500):
        for event in engine.step():
            if isinstance(event, Token):
                said.setdefault(event.id, []).append(event.token)
            else:
                ends[event.id] = event
        if engine.idle:
            return {id_: (bytes(said.get(id_, [])), end) for id_, end in ends.items()}
    raise AssertionError("the engine does not come to rest")


def test_answers_its_script_then_the_end_token():
    engine = ScriptedEngine(lambda _: b"Hello!")
    engine.submit(HELLO)
    ((text, end),) = drain(engine).values()
    assert text == b"Hello!"
    assert end.reason is FinishReason.END_TOKEN
    assert (end.usage.prompt, end.usage.generated) == (2, 7)


def test_answer_depends_on_the_prompt():
    engine = ScriptedEngine(lambda prompt: bytes(reversed(prompt)))
    ids = [
        engine.submit(request(prompt=tuple(word), stop_ids=(END_ID,))).id
        for word in (b"abc", b"xyz", b"a longer one", b"last", b"and one too many for the slots")
    ]
    said = drain(engine)
    assert [said[id_][0] for id_ in ids] == [
        b"cba",
        b"zyx",
        b"eno regnol a",
        b"tsal",
        b"stols eht rof ynam o",
    ]
    assert said[ids[-1]][1].reason is FinishReason.LENGTH
    assert engine.slots.claimed == 0


def test_too_long_prompts_are_refused_as_ever():
    with pytest.raises(PromptTooLong):
        ScriptedEngine(lambda _: b"").submit(request(prompt=(1,) * 256))


def test_cancelled_generation_falls_silent():
    engine = ScriptedEngine(lambda _: b"x" * 100)
    generation = engine.submit(request(max_tokens=100))
    engine.step()
    engine.cancel(generation)
    ((text, end),) = drain(engine).values()
    assert end.reason is FinishReason.CANCELLED
    assert len(text) < 100


def test_row_that_is_not_a_number_fails_alone():
    engine = ScriptedEngine(lambda prompt: [65, None] if prompt == (1,) else b"fine")
    bad = engine.submit(request(prompt=(1,))).id
    good = engine.submit(request(prompt=(2,), stop_ids=(END_ID,))).id
    said = drain(engine)
    assert said[bad][0] == b"A"
    assert said[bad][1].reason is FinishReason.FAILED
    assert isinstance(said[bad][1].error, GenerationFailed)
    assert said[good][0] == b"fine"


def test_exception_in_the_script_is_a_fault_of_the_whole_call_and_replayed():
    answers = [[65, 66, RuntimeError("the device is gone"), 68], b"ABCD"]
    engine = ScriptedEngine(lambda prompt: answers.pop(0) if prompt == (1,) else b"neighbour")
    first = engine.submit(request(prompt=(1,), stop_ids=(END_ID,))).id
    second = engine.submit(request(prompt=(2,), stop_ids=(END_ID,))).id
    said = drain(engine)
    assert said[first][0] == b"ABCD"
    assert said[second][0] == b"neighbour"
    assert engine.recovery.faults == 1


def test_request_that_always_breaks_the_engine_fails_alone():
    fault = RuntimeError("again")
    engine = ScriptedEngine(lambda prompt: [65, fault] if prompt == (1,) else b"neighbour")
    bad = engine.submit(request(prompt=(1,))).id
    good = engine.submit(request(prompt=(2,), stop_ids=(END_ID,))).id
    said = drain(engine)
    assert said[bad][1].reason is FinishReason.FAILED
    assert said[good][0] == b"neighbour"


def test_logprobs_halve_from_the_token_that_is_said():
    engine = ScriptedEngine(lambda _: [271])
    engine.submit(request(max_tokens=1, top_logprobs=3, temperature=0.7))
    events = [event for _ in range(5) for event in engine.step()]
    (found,) = [event.logprobs for event in events if isinstance(event, Token)]
    assert found.logprob == pytest.approx(-math.log(2))
    assert found.sampled == pytest.approx(-math.log(2))
    assert [id_ for id_, _ in found.top] == [271, 0, 1]
    assert [value for _, value in found.top] == pytest.approx([-math.log(2) * k for k in (1, 2, 3)])


def test_peek_sees_the_same_probabilities():
    engine = ScriptedEngine(lambda prompt: [len(prompt)])
    logprobs, logits = finish(engine.probes.peek([9, 1, 3, 3], 1))
    assert logprobs == pytest.approx([-math.log(2), -2 * math.log(2), -math.log(2)])
    assert int(np.argmax(logits)) == 4


def test_embeddings_tell_which_tokens_and_where():
    engine = ScriptedEngine(lambda _: b"")
    mean, last = finish(engine.probes.embed([3, 5, 3]))
    assert mean[[3, 5]] == pytest.approx([4 / 3, 2 / 3])
    assert np.flatnonzero(last).tolist() == [3]


def test_shared_beginnings_are_reused():
    engine = ScriptedEngine(lambda _: b"")
    engine.submit(request(prompt=tuple(range(50)), stop_ids=(END_ID,)))
    drain(engine)
    engine.submit(request(prompt=(*range(50), 7, 8), stop_ids=(END_ID,)))
    ((_, end),) = drain(engine).values()
    assert end.usage.reused == 50
