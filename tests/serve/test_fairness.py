"""One client cannot starve another: counted in steps of the engine, without a clock."""

import asyncio
import itertools
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from jaxllama.bridge import EngineThread, Probe, Question
from jaxllama.request import GenerationRequest, Token
from jaxllama.service.bounds import Bounds
from jaxllama.service.fair_queue import FairQueue
from jaxllama.service.slot_shares import divide_slots
from jaxllama.testing import ScriptedEngine
from tests.serve import clients
from tests.serve.conftest import Gate, TinyDialect, config, running, scenario, scripted

SECONDS_PER_STEP = 0.02  # a simulation's second has fifty steps
CHUNK = 32


class Loop:
    """An event loop that calls at once."""

    def is_closed(self):
        return False

    def call_soon_threadsafe(self, function, *arguments):
        function(*arguments)


class Simulation:
    """An engine's thread whose turns a test makes, one by one."""

    def __init__(self, *, slots, reserved=None):
        size = config(slots=slots, context=1024, prefill_chunk=CHUNK)
        self.engine = ScriptedEngine(lambda _: b"x" * 1000, config=size)
        self.queue = FairQueue(10**6, 10**9, clock=lambda: self.turns * SECONDS_PER_STEP)
        self.queue.shares = divide_slots(slots, reserved)
        self.thread = EngineThread(self.engine, self.queue)
        self.thread._loop = Loop()
        self.turns = 0
        self.random = random.Random(1)
        self.given = Counter()  # tokens of each client, prompts included

    def ask(self, client, *, prompt=8, tokens=40):
        """Submit a request; the list gets the number of turns until its first token."""
        waited, came = [], self.turns

        def tell(events):
            self.given[client] += sum(isinstance(event, Token) for event in events)
            if not waited:
                self.given[client] += prompt
                waited.append(self.turns - came)

        # No two prompts share a beginning.
        ids = tuple(self.random.randrange(250) for _ in range(prompt))
        self.thread.submit(GenerationRequest(ids, tokens), None, tell, client)
        return waited

    def probe(self, client, *, tokens=400):
        """Let a probe wait; the list gets the number of turns until its answer."""
        ids = [self.random.randrange(250) for _ in range(tokens)]
        question = Question(lambda engine: engine.probes.peek(ids, 1), tokens)
        return self.answer_to(question, client)

    def answer_to(self, question, client):
        """Let a question wait; the list gets the number of turns until its answer."""
        waited, came = [], self.turns
        answer = SimpleNamespace(
            cancelled=lambda: False,
            done=lambda: False,
            set_result=lambda _: waited.append(self.turns - came),
        )
        self.queue.push(Probe(question, client, answer))
        return waited

    def turn(self, count=1):
        for _ in range(count):
            self.turns += 1
            self.thread.turn()

    def until(self, waited):
        while not waited:
            self.turn()
        return waited[0]


def unloaded(**request):
    """Turns until the first token of a client that is alone."""
    alone = Simulation(slots=4)
    return alone.until(alone.ask("light", **request))


def percentile(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


@pytest.mark.parametrize("slots", [4, 8, 16])
@pytest.mark.parametrize("prompt", [8, 200])
def test_a_flood_at_most_doubles_the_time_to_a_light_clients_first_token(slots, prompt):
    """One request a second against a thousand of answers of up to 64 tokens."""
    one = Simulation(slots=slots)
    for _ in range(1000):
        one.ask("flood", prompt=one.random.randrange(4, 200), tokens=one.random.randrange(1, 64))
    one.turn(100)
    one.until(one.ask("light", prompt=prompt))  # makes the server a shared one
    one.turn(50)
    waits = []
    for _ in range(30):
        waits.append(one.ask("light", prompt=prompt, tokens=20))
        one.turn(50)
    assert one.queue.items > 0  # the flood goes on
    assert all(waits)
    assert percentile([wait[0] for wait in waits], 0.99) <= 2 * unloaded(prompt=prompt)


def test_the_first_request_of_a_second_client_gets_the_first_slot_that_is_free():
    one = Simulation(slots=4)
    for tokens in range(30, 130):
        one.ask("flood", tokens=tokens)
    one.turn(10)
    assert one.engine.slots.free == 0
    waited = one.ask("light")
    while one.engine.slots.free == 0:
        one.turn()
    freed = one.turns
    one.until(waited)
    assert one.turns - freed <= unloaded()


def test_a_client_that_is_alone_uses_all_slots():
    one = Simulation(slots=16)
    for _ in range(40):
        one.ask("flood", tokens=100)
    one.turn(30)
    assert one.engine.counts["running"] == 16


def test_two_floods_get_the_same_number_of_tokens():
    one = Simulation(slots=8)
    for _ in range(300):
        one.ask("short", tokens=5)
        one.ask("long", tokens=90)
    one.turn(500)
    assert one.queue.items > 0
    assert abs(one.given["short"] - one.given["long"]) < 0.1 * one.given["long"]


def test_one_prompt_does_not_wait_for_the_prompts_of_another_client():
    """Fourteen long prompts are on their way when a short one comes."""
    one = Simulation(slots=16)
    one.ask("light", tokens=1)
    one.turn(5)
    for _ in range(100):
        one.ask("flood", prompt=900)
    one.turn(3)
    assert one.engine.counts["filling"] == 14
    assert one.until(one.ask("light")) <= 2 * unloaded()


def test_probes_of_one_client_do_not_delay_requests_of_another():
    one = Simulation(slots=8)
    for _ in range(300):
        one.probe("flood")
    one.turn(20)
    waits = []
    for _ in range(20):
        waits.append(one.until(one.ask("light")))
        one.turn(50)
    assert one.queue.items > 0
    assert max(waits) <= 2 * unloaded()


def test_requests_of_one_client_do_not_delay_probes_of_another():
    """A piece is computed in every second step at least, whatever else runs."""
    alone = Simulation(slots=8)
    pieces = alone.until(alone.probe("light"))
    one = Simulation(slots=8)
    for _ in range(500):
        one.ask("flood")
    one.turn(20)
    one.until(one.probe("light"))
    one.turn(20)
    assert max(one.until(one.probe("light")) for _ in range(5)) <= 2 * pieces + 1


def test_a_prompt_on_its_way_waits_for_a_piece_of_a_probe_in_every_second_step_only():
    one = Simulation(slots=8)
    calls = []
    programs = one.engine.programs
    peek, prefill = programs.peek, programs.prefill
    programs.peek = lambda *args: calls.append("peek") or peek(*args)
    programs.prefill = lambda *args: calls.append("prefill") or prefill(*args)
    for _ in range(9):
        one.probe("flood")
    one.turn(10)
    calls.clear()
    one.until(one.ask("light", prompt=10 * CHUNK))
    assert calls.count("prefill") == 10
    assert 5 <= calls.count("peek") <= 7


def test_probes_of_two_clients_take_turns():
    one = Simulation(slots=8)
    for _ in range(50):
        one.probe("flood")
    one.turn(3)
    alone = Simulation(slots=8)
    assert one.until(one.probe("light")) <= 2 * alone.until(alone.probe("light")) + 1


def test_a_probe_costs_the_tokens_that_it_computes():
    """Those that a slot has cached are free."""
    one, costs = Simulation(slots=4), []
    ids = list(range(200))

    def begin(engine):
        yield from engine.probes.peek(ids, 150)
        costs.append(one.queue._accounts["light"].given)

    for _ in range(2):
        one.until(one.answer_to(Question(begin, 200), "light"))
    assert costs == [200, 51]


def test_a_turn_computes_one_piece_of_a_probe_beside_a_step():
    one = Simulation(slots=16)
    calls = []
    programs = one.engine.programs
    peek, decode = programs.peek, programs.decode
    programs.peek = lambda *args: calls.append("peek") or peek(*args)
    programs.decode = lambda *args: calls.append("decode") or decode(*args)
    one.ask("reader", tokens=200)
    one.turn()
    for client in "abcd":
        one.probe(client)
    one.turn(40)
    assert ("peek", "peek") not in itertools.pairwise(calls)
    assert ("decode", "decode") not in itertools.pairwise(calls[2:-1])


# Through the server.

KEYS = ("many", "one")
DIALECTS = (TinyDialect(), *clients.DIALECTS)


def key(name):
    return {"Authorization": f"Bearer {name}"}


class Watch:
    """How many steps the engine makes for each request of one client, from the queue to its end."""

    def __init__(self, live, gate):
        self.waits = {}  # client -> steps
        queue, came = live.service.queue, {}
        push, ended = queue.push, queue.ended

        def noted_push(work):
            came[work] = gate.steps
            push(work)

        def noted_ended(work):
            self.waits.setdefault(work.client, []).append(gate.steps - came.pop(work))
            ended(work)

        queue.push, queue.ended = noted_push, noted_ended


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/say", {"prompt": "hello", "max_tokens": 150}),
        ("/score", {"prompt": "a" * 200, "continuations": ["b" * 40, "c" * 40]}),
        ("/classify", {"prompt": "a" * 200, "labels": ["b", "c"]}),
        ("/v1/embeddings", {"input": "a" * 200}),
        ("/v1/completions", {"prompt": "a" * 200, "echo": True, "logprobs": 1, "max_tokens": 0}),
    ],
)
def test_whatever_a_client_floods_with_another_is_served_soon(path, body):
    async def test():
        engine = scripted(b"x" * 150, slots=4)
        async with running(engine, api_keys=KEYS, dialects=DIALECTS) as live:
            gate = Gate(engine)
            watch = Watch(live, gate)

            async def ask():
                quick = {"prompt": "quick", "max_tokens": 1}
                asking = live.status("/say", "POST", json=quick, headers=key("one"))
                task = asyncio.create_task(asking)
                await gate.advance(task.done)
                assert await task == 200

            await ask()
            ((client, (alone,)),) = watch.waits.items()
            flood = [
                asyncio.create_task(live.status(path, "POST", json=body, headers=key("many")))
                for _ in range(60)
            ]
            queue = live.service.queue
            await live.until(lambda: queue.items + queue.running >= 60)
            for _ in range(5):
                await ask()
            assert max(watch.waits[client]) <= 2 * alone + 1  # a step may have begun already
            assert queue.items > 0
            gate.open()
            assert await asyncio.gather(*flood) == [200] * 60

    scenario(test)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"prompt": "a" * 200, "continuations": ["c"]}),
        ("/classify", {"prompt": "a" * 200, "labels": ["c"]}),
        ("/v1/embeddings", {"input": "a" * 200}),
        ("/v1/completions", {"prompt": "a" * 200, "echo": True, "logprobs": 1, "max_tokens": 0}),
    ],
)
def test_a_full_queue_refuses_probes_too(path, body):
    async def test():
        engine = scripted(b"x" * 150, slots=1)
        bounds = Bounds(queue_requests=4)
        async with running(engine, bounds=bounds, api_keys=KEYS, dialects=DIALECTS) as live:
            gate = Gate(engine)
            queue = live.service.queue
            asked = []
            for _ in range(3):  # one has the slot, two wait
                asking = live.status(path, "POST", json=body, headers=key("many"))
                asked.append(asyncio.create_task(asking))
                await live.until(lambda: queue.items + queue.running == len(asked))
                await gate.advance(lambda: queue.running == 1)
            assert queue.items == 2
            refused = live.http.post(f"{live.url}{path}", json=body, headers=key("many"))
            async with refused as response:
                assert response.status == 429
                assert (await response.json())["error"]["code"] == "queue_full"
                assert int(response.headers["Retry-After"]) >= 1
            other = live.status(path, "POST", json=body, headers=key("one"))
            asked.append(asyncio.create_task(other))
            gate.open()
            assert await asyncio.gather(*asked) == [200] * 4

    scenario(test)


def test_a_client_that_leaves_takes_its_probes_along():
    """One of them holds a slot, the others wait."""

    async def test():
        engine = scripted(b"x" * 150)
        async with running(engine, dialects=DIALECTS) as live:
            gate = Gate(engine)
            body = {"prompt": "a" * 200, "continuations": ["b" * 40]}
            asked = [
                asyncio.create_task(live.status("/score", "POST", json=body)) for _ in range(5)
            ]
            queue = live.service.queue
            await gate.advance(lambda: engine.slots.claimed == 1 and queue.items == 4)
            for task in asked:
                task.cancel()
            await live.until(lambda: queue.items == 0)
            gate.let(2)
            await live.until(lambda: engine.slots.claimed == 0)
            assert (queue.running, queue._accounts) == (0, {})
            gate.open()
            await live.settled()

    scenario(test)
