"""Streams of the Python API when the engine cannot go on: they end, they never wait for ever."""

import pytest

from jaxllama.errors import EngineStopped
from jaxllama.intake import Intake
from jaxllama.llm import LLM
from jaxllama.request import FinishReason
from jaxllama.testing import ByteTokenizer
from jaxllama.testing.models import TINY
from jaxllama.testing.scripted import SMALL, ScriptedEngine
from jaxllama_formats.chatml import ChatMl


def scripted_llm() -> LLM:
    engine = ScriptedEngine(lambda _prompt: b"a long answer")
    return LLM(engine, Intake(ByteTokenizer(), ChatMl(), engine.bank, SMALL), config=TINY)


def test_stream_that_outlives_its_model_ends():
    """Neither reading nor closing it waits for events that never come."""
    closed = scripted_llm()
    stream, other = closed.stream("abc", max_tokens=9), closed.stream("abd", max_tokens=9)
    deltas = iter(stream)
    assert next(deltas).text == "a"
    closed.close()
    assert list(deltas) == []
    assert stream.completion.finish_reason is FinishReason.CANCELLED
    stream.close()
    other.close()
    assert other.completion.finish_reason is FinishReason.CANCELLED
    with pytest.raises(EngineStopped, match="closed"):
        closed.generate("abc")


def test_waiting_for_a_slot_that_nobody_frees_is_an_error():
    llm = scripted_llm()
    borrowed = [llm.engine.probes.peek([1, index], 1) for index in range(SMALL.slots)]
    for look in borrowed:
        next(look)
    with pytest.raises(EngineStopped, match="a slot was borrowed"):
        llm.score("abc", ["d"])
    for look in borrowed:
        look.close()
    assert len(llm.score("abc", ["d"])) == 1
    llm.close()


def test_streams_close_all_answers_of_a_batch_when_the_engine_cannot_go_on():
    """The first error ends the batch; no request stays behind in the engine."""
    llm = scripted_llm()
    programs, empty = llm.engine.programs, llm.engine.programs.empty

    def fail(*_):
        raise MemoryError("injected: no room")

    programs.decode = programs.empty = fail
    with pytest.raises(MemoryError):
        llm.generate(["one", "two", "three"], max_tokens=5)
    assert llm.engine.idle and llm.engine.ledger["cancelled"] == 3
    del programs.decode
    programs.empty = empty
    assert llm.generate("abc", max_tokens=5).text == "a lon"
    llm.close()


def test_events_that_arrived_while_others_were_read_are_enough():
    """Reading one answer steps the engine for all; the others then end without another step."""
    llm = scripted_llm()
    stream, other = llm.stream("abc", max_tokens=5), llm.stream("abd", max_tokens=5)
    batch = llm.generate_each([("abe", {"max_tokens": 3}), ("abf", {"max_tokens": 5})])
    assert next(batch)[1].text == "a l"
    assert "".join(delta.text for delta in stream) == "a lon"
    while not llm.engine.idle:
        llm.streams.pump()
    assert "".join(delta.text for delta in other) == "a lon"
    assert [answer.text for _, answer in batch] == ["a lon"]
    llm.close()
