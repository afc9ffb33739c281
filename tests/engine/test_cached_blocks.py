"""The events of an engine say at any time which blocks of tokens it has."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jaxllama.engine.cached_blocks import (
    BLOCK,
    BlockEvent,
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    CachedBlocks,
    Medium,
)
from jaxllama.engine.prompt_store import PromptStore
from jaxllama.engine.slots import AdapterKey, SlotTable
from jaxllama.request import GenerationRequest
from jaxllama.testing.scripted import SMALL, ScriptedEngine

Held = dict[Medium, set[tuple[AdapterKey, tuple[int, ...]]]]


class Subscriber:
    """What a router knows from the events: the beginnings of prompts in each medium."""

    def __init__(self) -> None:
        self.hashes: dict[Medium, dict[int, tuple[AdapterKey, tuple[int, ...]]]] = {}
        self.events: list[BlockEvent] = []

    def tell(self, events: Sequence[BlockEvent]) -> None:
        self.events += events
        for event in events:
            match event:
                case BlocksCleared():
                    self.hashes = {medium: {} for medium in Medium}
                case BlocksRemoved(hashes, medium):
                    for each in hashes:
                        del self.hashes[medium][each]
                case BlocksStored(blocks, medium):
                    self.store(event, medium)
                    assert len(event.tokens) == BLOCK * len(blocks)

    def store(self, event: BlocksStored, medium: Medium) -> None:
        known = self.hashes[medium]
        for block in event.blocks:
            assert block.hash not in known
            before = () if block.parent is None else known[block.parent][1]
            own = np.frombuffer(block.tokens, np.int32).tolist()
            known[block.hash] = (block.adapter, (*before, *own))

    @property
    def held(self) -> Held:
        return {medium: set(known.values()) for medium, known in self.hashes.items()}


def truth(table: SlotTable, store: PromptStore) -> Held:
    """Every whole block of the slots and of the store, with all tokens before it."""
    found: Held = {medium: set() for medium in Medium}
    for slot in table.slots:
        ids = slot.cached.ids
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            found[Medium.DEVICE].add((slot.adapter, tuple(ids[:end])))
    for block in store:
        ids = np.frombuffer(b"".join(each.tokens for each in block.path), np.int32).tolist()
        start = len(ids) - len(block.tokens) // 4
        for end in range(start + BLOCK, len(ids) + 1, BLOCK):
            found[Medium.HOST].add((block.adapter, tuple(ids[:end])))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_events_follow_slots_and_store_through_anything(
    seed: int,
) -> None:
    chance = random.Random(seed)
    store = PromptStore(6, 1)
    prefixes = [[chance.randrange(9) for _ in range(400)] for _ in range(3)]

    def keep(slot: Any, kept: int) -> None:
        if len(slot.cached) - kept >= 32:
            store.save(slot.cached.ids, slot.adapter, lambda _: ())

    table, subscriber = SlotTable(3, keep), Subscriber()
    watch = CachedBlocks(table, store, subscriber.tell)
    for _ in range(150):
        adapter = chance.choice([None, None, (1, 1.0), (1, 0.5)])
        ids = chance.choice(prefixes)[: chance.randrange(1, 400)]
        ids = [*ids, *(chance.randrange(9) for _ in range(chance.randrange(150)))]
        match chance.randrange(8):
            case 0:
                table.clear()
            case 1:
                table.release(chance.randrange(3), keep=chance.random() < 0.5)
            case 2 | 3:
                for slot in table.slots:
                    slot.cached.extend([chance.randrange(9) for _ in range(chance.randrange(99))])
            case _:
                claim = table.claim(0, ids, adapter)
                if claim is not None:
                    cached = table.slots[claim.slot].cached
                    stop = chance.randrange(len(cached), len(ids) + 1)
                    cached.extend(ids[len(cached) : stop])
        if chance.random() < 0.5:
            table.release(chance.randrange(3))
        watch.look()
        assert subscriber.held == truth(table, store)
    assert {type(each) for each in subscriber.events} == {
        *(BlocksStored, BlocksRemoved, BlocksCleared)
    }


def test_the_check_of_events_can_fail() -> None:
    table, subscriber = SlotTable(1), Subscriber()
    CachedBlocks(table, PromptStore(0, 1), subscriber.tell)
    table.slots[0].cached.extend(range(BLOCK))
    assert subscriber.held != truth(table, PromptStore(0, 1))


def run(engine: ScriptedEngine, *prompts: Sequence[int]) -> None:
    for prompt in prompts:
        engine.submit(GenerationRequest(tuple(prompt), 4))
    while not engine.idle:
        engine.step()


def test_a_prompt_is_told_block_by_block_and_a_shared_prefix_once() -> None:
    subscriber, engine = Subscriber(), ScriptedEngine(lambda _: [7] * 4)
    engine.tell_of_blocks(subscriber.tell)
    prompt = [each % 50 for each in range(2 * BLOCK + 10)]
    run(engine, prompt, [*prompt[: BLOCK + 5], 99])
    stored = [each for each in subscriber.events if isinstance(each, BlocksStored)]
    assert [token for each in stored for token in each.tokens] == prompt[: 2 * BLOCK]
    assert stored[0].blocks[0].parent is None
    assert len({block.hash for each in stored for block in each.blocks}) == 2


def test_blocks_move_to_the_store_and_come_back() -> None:
    subscriber = Subscriber()
    engine = ScriptedEngine(
        lambda _: [7] * 4,
        prompt_store=PromptStore(100, 1),
        config=dataclasses.replace(SMALL, slots=1),
    )
    engine.tell_of_blocks(subscriber.tell)
    first, second = ([start] * (2 * BLOCK) for start in (1, 2))
    for prompt in (first, second, first):
        run(engine, prompt)
        ((_, tokens),) = [each for each in subscriber.held[Medium.DEVICE] if len(each[1]) == BLOCK]
        assert list(tokens) == prompt[:BLOCK]
    assert {tokens[0] for _, tokens in subscriber.held[Medium.HOST]} == {1, 2}
    assert subscriber.held == truth(engine.slots, engine.prompt_store)


def test_an_observer_that_comes_later_hears_of_what_is_there() -> None:
    engine = ScriptedEngine(lambda _: [7] * 4)
    run(engine, [1] * BLOCK)
    subscriber = Subscriber()
    engine.tell_of_blocks(subscriber.tell)
    assert isinstance(subscriber.events[0], BlocksCleared)
    assert subscriber.held == truth(engine.slots, engine.prompt_store)
    assert subscriber.held[Medium.DEVICE]


def test_hashes_depend_on_adapter_and_scale() -> None:
    found = set()
    for adapter in (None, (1, 1.0), (1, 0.5), (2, 1.0)):
        table, subscriber = SlotTable(1), Subscriber()
        watch = CachedBlocks(table, PromptStore(0, 1), subscriber.tell)
        table.claim(0, [1] * (BLOCK + 1), adapter)
        table.slots[0].cached.extend([1] * BLOCK)
        watch.look()
        found |= set(subscriber.hashes[Medium.DEVICE])
    assert len(found) == 4
