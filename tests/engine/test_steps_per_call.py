"""How many decode steps one call of the engine makes."""

import dataclasses
import itertools
import math

import pytest

from jaxllama.config import EngineConfig
from jaxllama.errors import ConfigError
from jaxllama.request import GenerationRequest, Token
from jaxllama.testing import ScriptedEngine

MOST = 8  # steps of a call
SIZE = EngineConfig(slots=16, context=256, steps_per_sync=MOST, candidates=256)


class Slow:
    """The tokens of a call, ready 5 ms per step after the host begins to wait for them."""

    def __init__(self, tokens, timed):
        self.tokens, self.timed = tokens, timed

    def __len__(self):
        return len(self.tokens)

    def __array__(self, dtype=None, copy=None):
        self.timed.seconds += 0.005 * (self.tokens >= 0).any(axis=1).sum()
        return self.tokens


class Timed:
    """An engine whose decode steps take 5 ms each, and the steps of its calls."""

    def __init__(self, config=SIZE):
        self.engine = ScriptedEngine(lambda _: b"x" * 200, config=config)
        self.seconds, self.calls, self.submitted = 0.0, [], 0
        self.engine._clock = lambda: self.seconds
        self.engine.calls._clock = self.engine._clock
        decode = self.engine.programs.decode

        def counted(state, steps, *more):
            self.calls.append(int(steps))
            state, output = decode(state, steps, *more)
            return state, output._replace(token=Slow(output.token, self))

        self.engine.programs.decode = counted

    def submit(self, count=1, tokens=64):
        """Requests whose prompts share no beginning, so each takes a prefill call."""
        for _ in range(count):
            self.submitted += 1
            self.engine.submit(GenerationRequest((self.submitted, 1, 2), tokens))

    def step(self, count=1):
        return [event for _ in range(count) for event in self.engine.step()]

    def warm(self):
        """Let the engine learn how long a step takes."""
        self.submit(tokens=4)
        while not self.engine.idle:
            self.engine.step()
        self.calls.clear()


def test_64_waiting_requests_on_16_slots_leave_calls_long():
    timed = Timed()
    timed.submit(80)
    assert timed.engine.counts["waiting"] == 80
    while timed.engine.counts["waiting"] or timed.engine.counts["filling"]:
        timed.step()
    waited = list(timed.calls)
    # Each prompt takes a step of its own; between the waves of 16, calls are as long as they may.
    assert waited.count(MOST) >= 4 * (64 - 2 * 16) // MOST
    assert sum(waited) / len(waited) > 2


def test_a_call_ends_with_the_first_row_that_reaches_its_budget():
    timed = Timed()
    timed.warm()
    timed.submit(16, tokens=27)
    while timed.engine.counts["running"] < 16:
        timed.step()
    timed.submit()  # waits
    timed.calls.clear()
    left = min(27 - len(one.emitted) for one in timed.engine._running)
    while timed.engine.slots.full:
        timed.step()
    # Of these, one step was on its way, and one was sent while the last one was read.
    assert sum(timed.calls) <= left + 1


def test_settings_bound_the_steps_of_a_call_and_the_tokens_of_a_prompt_chunk():
    for setting, expected in (
        ({"steps_per_sync": 3}, [1, 3, 3]),
        ({"sync_ms": 10.0}, [1, 2, 2]),
        ({"sync_ms": 0.5}, [1, 1, 1]),
        ({"prefill_chunk": 32}, [1, MOST, MOST]),
    ):
        timed = Timed(dataclasses.replace(SIZE, **setting))
        timed.warm()
        timed.submit()
        timed.step(3)
        assert timed.calls == expected, setting
    for chunk, chunks in ((32, 4), (64, 2), (100, 1)):  # 100 is rounded up to 112: whole tiles
        timed = Timed(dataclasses.replace(SIZE, prefill_chunk=chunk))
        timed.engine.submit(GenerationRequest(tuple(range(101)), 5))
        timed.step(chunks - 1)
        assert timed.engine.counts["filling"] == (chunks > 1)
        timed.step()
        assert timed.engine.counts["filling"] == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"prefill_chunk": 0}, "prefill_chunk is 0; it must be at least 1"),
        ({"steps_per_sync": 0}, "steps_per_sync is 0; it must be at least 1"),
        ({"steps_per_sync": 2000}, "steps_per_sync is 2000; it must be at most 1024"),
        ({"sync_ms": 0.0}, "sync_ms is 0.0; it must be above 0 and at most 10000"),
        ({"sync_ms": math.nan}, "sync_ms is nan"),
    ],
)
def test_settings_out_of_bounds_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SIZE, **setting)


def test_requests_that_wait_outside_the_engine_end_a_call_as_well():
    for wait, expected in ((False, MOST), (True, 3)):
        timed = Timed()
        timed.warm()
        timed.submit(tokens=4)
        timed.engine.requests_wait = wait
        timed.step(2)
        assert timed.calls == [1, expected]


def test_the_first_token_of_a_row_takes_a_call_of_one_step():
    timed = Timed()
    timed.warm()
    timed.submit()
    assert not timed.step()
    events = timed.step()
    assert timed.calls == [1, MOST]
    assert [type(event) for event in events] == [Token]


def test_calls_are_short_while_several_clients_use_the_engine():
    timed = Timed()
    timed.warm()
    timed.engine.is_shared = True
    timed.submit()
    timed.step(5)
    assert timed.calls == [1, 2, 2, 2, 2]  # 10 ms


def test_a_shared_engine_can_wait_with_the_next_call_while_the_device_runs_the_last_one():
    timed = Timed()
    timed.warm()
    timed.submit()
    timed.step(3)
    assert timed.engine.spare_seconds == 0.0  # one client: nobody waits for the next call
    timed.engine.is_shared = True
    timed.step(2)
    assert timed.calls[-1] == 2  # it began when the call before it was read
    assert timed.engine.spare_seconds == pytest.approx(0.010 - 0.005 / 4)
    timed.seconds += 0.008
    assert timed.engine.spare_seconds == pytest.approx(0.002 - 0.005 / 4)
    timed.seconds += 1.0
    assert timed.engine.spare_seconds == 0.0
    while not timed.engine.idle:
        timed.step()
    assert timed.engine.spare_seconds == 0.0


@pytest.mark.parametrize(
    ("clients", "is_shared"), [("aaab", True), ("aaab", False), ("aabb", True)]
)
def test_the_first_token_of_a_small_client_beside_a_large_one_takes_a_call_of_its_own(
    clients, is_shared
):
    engine, calls = ScriptedEngine(lambda _: b"x" * 200, config=SIZE), []
    send = engine.calls.send

    def running(owners):
        return zip(engine._running, owners, strict=True)

    def noted(steps, owners, masks=None):
        calls.append("".join(owner.client for owner in owners if owner is not None))
        if masks is not None:
            allowed = masks.allowed.any(axis=1).tolist()
            left_out = [one is not None and owner is None for one, owner in running(owners)]
            assert allowed == [not each for each in left_out]
        send(steps, owners, masks)

    engine.calls.send = noted
    for number, client in enumerate(clients[:-1]):
        engine.submit(GenerationRequest((number, 1), 100), client=client)
    while not all(one.emitted for one in engine._live.values()):
        engine.step()
    calls.clear()
    engine.is_shared = is_shared
    new = engine.submit(GenerationRequest((len(clients), 1), 100), client=clients[-1])
    events = [event for _ in range(2) for event in engine.step()]
    goes_ahead = is_shared and clients.count("a") > 2
    assert calls == (["b", clients] if goes_ahead else [clients, clients])
    assert new.emitted
    while not engine.idle:
        events += engine.step()
    assert sum(event.id == new.id and isinstance(event, Token) for event in events) == 100


def test_chunks_do_not_queue_up_on_the_device_while_several_clients_use_the_engine():
    for is_shared, expected in ((False, 0), (True, 5)):
        timed, waits = Timed(), []
        timed.engine.is_shared = is_shared
        timed.engine._batch._state.block_until_ready = lambda waits=waits: waits.append(1)
        timed.engine.submit(GenerationRequest(tuple(range(200)), 5))
        timed.step(5)
        assert timed.engine.counts["filling"] == 1
        assert len(waits) == expected


def test_prompts_of_clients_take_turns():
    timed = Timed()
    sent = []
    prefill = timed.engine.programs.prefill
    timed.engine.programs.prefill = lambda state, slot, ids, *more: (
        sent.append(chr(ids[0])) or prefill(state, slot, ids, *more)
    )
    for letter, client in (*zip("aaaa", "1111", strict=True), ("b", "2")):
        # No two share a beginning.
        ids = tuple(ord(letter) for _ in range(99)), len(timed.engine._live)
        timed.engine.submit(GenerationRequest((*ids[0][:98], ids[1]), 5), client=client)
    timed.step(8)
    turns = "".join(sent)[:8]
    assert "bb" not in turns
    assert turns.count("b") == 4
    assert ("a", "a") not in itertools.pairwise(turns[:7])


def test_a_prompt_that_begins_like_another_clients_last_one_does_not_wait_for_all_of_them():
    timed = Timed()
    prompts = [tuple(range(100 * number, 100 * number + 20)) for number in range(6)]
    submit = timed.engine.submit
    for ids in prompts:
        submit(GenerationRequest(ids, 5), client="1")
    same = submit(GenerationRequest((*prompts[-1][:15], 1, 2), 5), client="2")
    while not same.emitted:
        timed.step()
    assert same.reused == 15
    assert timed.engine.counts["filling"] > 0


def test_other_prompts_have_their_turns_while_one_waits_for_a_long_prefix():
    timed = Timed()
    long = tuple(range(200))
    submit = timed.engine.submit
    first = submit(GenerationRequest(long, 5), client="1")
    submit(GenerationRequest((*long[:190], 1, 2), 5), client="2")
    others = [submit(GenerationRequest((7, int(each)), 5), client=each) for each in "12"]
    timed.step(6)
    assert all(each.emitted for each in others)
    assert not first.emitted
