"""Programs that are still being compiled: who needs one waits for it, and the others go on."""

import dataclasses
import logging

import pytest

from jaxllama.engine.blueprints import WHOLE
from jaxllama.errors import QueueFull
from jaxllama.request import Finished, FinishReason, GenerationRequest, Token
from jaxllama.sampling import Adjuster, Filter, Knob, knob
from jaxllama.testing.byte_tokenizer import END_ID
from jaxllama.testing.scripted import SMALL, ScriptedEngine


class Usual(Filter):
    """A sampler that every decode program has."""

    common = True
    usual: Knob = knob(off=0)

    def __call__(self, best, context):
        del context
        return best.p >= 0


class Rare(Adjuster):
    """A sampler that only the whole decode program has."""

    rare: Knob = knob(off=0)

    def __call__(self, logits, context):
        del context
        return logits


@pytest.fixture
def engine(monkeypatch) -> ScriptedEngine:
    """An engine on whose programs the test decides; `compiling` lists those that are not there."""
    engine = ScriptedEngine(lambda _prompt: b"abc", samplers={"usual": Usual, "rare": Rare})
    engine.programs.compiling = {WHOLE}
    monkeypatch.setattr(
        engine.programs, "is_ready", lambda name: name not in engine.programs.compiling
    )
    return engine


def asking(**knobs: int) -> GenerationRequest:
    return GenerationRequest((1, 2), 10, stop_ids=(END_ID,), knobs=knobs)


def answers(engine: ScriptedEngine, steps: int) -> dict[int, list[int]]:
    """Step the engine and return the tokens of each finished answer."""
    tokens: dict[int, list[int]] = {}
    ended = {}
    for _ in range(steps):
        for event in engine.step():
            if isinstance(event, Token):
                tokens.setdefault(event.id, []).append(event.token)
            elif isinstance(event, Finished):
                ended[event.id] = tokens.get(event.id, [])
    return ended


def test_only_the_request_that_needs_a_missing_sampler_waits(engine, caplog):
    caplog.set_level(logging.INFO)
    rare = [engine.submit(asking(rare=1)) for _ in range(SMALL.slots + 1)]
    usual = [engine.submit(asking(usual=1)), engine.submit(asking(rare=0))]
    assert engine.room == SMALL.slots - 2
    ended = answers(engine, 12)
    assert ended.keys() == {each.id for each in usual}
    assert not engine.idle
    assert caplog.text.count("requests that use rare wait") == 1
    engine.cancel(rare[0])
    engine.programs.compiling.clear()
    ended = answers(engine, 30)
    assert ended.keys() == {each.id for each in rare}
    assert all(list(b"abc") == ended[each.id] for each in rare[1:])
    assert engine.idle


def test_a_waiting_request_is_replayed_after_a_fault_like_others(engine):
    engine.submit(asking(rare=1))
    with engine.recovery.guard():
        raise RuntimeError("a fault")
    assert answers(engine, 5) == {}
    engine.programs.compiling.clear()
    assert list(answers(engine, 12).values()) == [list(b"abc")]


def test_a_waiting_engine_can_be_closed(engine):
    generation = engine.submit(asking(rare=1))
    answers(engine, 2)
    engine.close()
    assert generation.is_over
    reasons = [event.reason for event in engine._events if isinstance(event, Finished)]
    assert reasons == [FinishReason.CANCELLED]


def test_a_probe_waits_in_its_slot_while_answers_go_on(engine):
    engine.programs.compiling.add("embed")
    probe = engine.probes.embed([1, 2, 3])
    assert [next(probe) for _ in range(3)] == [0, 0, 0]
    assert engine.slots.claimed == 1
    engine.submit(asking())
    assert list(answers(engine, 12).values()) == [list(b"abc")]
    engine.programs.compiling.clear()
    assert next(probe) == 3
    probe.close()
    assert engine.slots.claimed == 0
    others = [engine.probes.embed([1]) for _ in range(SMALL.slots + 1)]
    for one in others[:-1]:
        next(one)
    with pytest.raises(QueueFull):
        next(others[-1])


def test_a_prefix_is_computed_again_while_copy_is_missing(engine):
    engine.programs.compiling = {"copy"}
    long = dataclasses.replace(asking(), prompt=tuple(range(100)))
    engine.submit(long)
    engine.submit(long)
    assert list(answers(engine, 30).values()) == [list(b"abc")] * 2
