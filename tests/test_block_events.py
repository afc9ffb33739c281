"""Subscribers receive block events in vLLM's format, and those that they have missed."""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from jaxllama.engine.cached_blocks import BLOCK
from jaxllama.errors import ConfigError
from jaxllama.request import GenerationRequest
from jaxllama.serve.settings import Settings
from jaxllama.service.block_events import BlockPublisher, KeptBatches
from jaxllama.testing.scripted import ScriptedEngine

zmq = pytest.importorskip("zmq")
SECONDS = 10.0
PROMPT = [each % 50 for each in range(2 * BLOCK + 3)]


# As vLLM's own example of a subscriber declares them.


class Event(msgspec.Struct, array_like=True, omit_defaults=True, tag=True):
    pass


class BlockStored(Event):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class BlockRemoved(Event):
    block_hashes: list[int]
    medium: str | None


class AllBlocksCleared(Event):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class Subscriber:
    """A router: it reads events, and asks for those before its time."""

    def __init__(self, publisher: BlockPublisher, topic: str = "") -> None:
        self.context = zmq.Context()
        self.events = self.socket(zmq.SUB, publisher.endpoint)
        self.events.setsockopt_string(zmq.SUBSCRIBE, topic)
        self.replay = self.socket(zmq.DEALER, publisher.replay) if publisher.replay else None

    def socket(self, kind: int, address: str) -> Any:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.RCVTIMEO, int(1000 * SECONDS))
        socket.connect(address.replace("0.0.0.0", "127.0.0.1"))
        return socket

    def read(self) -> tuple[bytes, int, Batch]:
        topic, number, payload = self.events.recv_multipart()
        batch = msgspec.msgpack.decode(payload, type=Batch)
        return topic, struct.unpack(">Q", number)[0], batch

    def ask(self, first: int) -> list[tuple[int, Batch]]:
        """All batches from a number on, up to the end mark."""
        self.replay.send_multipart((b"", struct.pack(">Q", first)))
        found = []
        while True:
            empty, number, payload = self.replay.recv_multipart()
            assert empty == b""
            if struct.unpack(">q", number)[0] == -1:
                assert payload == b""
                return found
            found.append((struct.unpack(">q", number)[0], decoded(payload)))

    def past(self, count: int) -> list[Event]:
        """The first events, as soon as there are so many."""
        while len(found := [each for _, batch in self.ask(0) for each in batch.events]) < count:
            pass
        assert len(found) == count
        return found

    def close(self) -> None:
        self.context.destroy(linger=0)


def decoded(payload: bytes) -> Batch:
    return msgspec.msgpack.decode(payload, type=Batch)


@pytest.fixture
def publisher() -> Iterator[BlockPublisher]:
    found = BlockPublisher("tcp://127.0.0.1:*", topic="kv@a@m", replay="tcp://127.0.0.1:*")
    yield found
    found.close()


@pytest.fixture
def subscriber(publisher: BlockPublisher) -> Iterator[Subscriber]:
    found = Subscriber(publisher, "kv@")
    yield found
    found.close()


def generate(engine: ScriptedEngine, prompt: list[int]) -> None:
    engine.submit(GenerationRequest(tuple(prompt), 2))
    while not engine.idle:
        engine.step()


def test_a_subscriber_sees_what_the_engine_has(
    publisher: BlockPublisher, subscriber: Subscriber
) -> None:
    engine = ScriptedEngine(lambda _: [7, 7])
    publisher.follow(engine)
    generate(engine, PROMPT)
    cleared, first, second = subscriber.past(3)
    assert cleared == AllBlocksCleared()
    assert isinstance(first, BlockStored) and isinstance(second, BlockStored)
    assert (first.block_size, first.medium, first.lora_id) == (BLOCK, "GPU", None)
    assert first.parent_block_hash is None
    assert [second.parent_block_hash] == first.block_hashes
    assert first.token_ids + second.token_ids == PROMPT[: 2 * BLOCK]
    number, batch = subscriber.ask(1)[0]
    assert (number, batch.data_parallel_rank) == (1, 0) and batch.ts > 1.7e9


def test_live_events_carry_topic_and_rising_numbers(
    publisher: BlockPublisher, subscriber: Subscriber
) -> None:
    engine = ScriptedEngine(lambda _: [7, 7])
    publisher.follow(engine)
    for start in range(200):  # until the subscriber is connected
        generate(engine, [start % 60, *PROMPT])
        if subscriber.events.poll(50):
            break
    topic, number, _ = subscriber.read()
    assert topic == b"kv@a@m"
    generate(engine, [61, *PROMPT])
    firsts: list[int] = []
    while 61 not in firsts:
        _, following, batch = subscriber.read()
        assert following == number + 1
        number = following
        firsts += [each.token_ids[0] for each in batch.events if isinstance(each, BlockStored)]
    assert [each for each, _ in subscriber.ask(number - 1)][:2] == [number - 1, number]
    assert subscriber.ask(1 << 60) == []


def test_blocks_that_a_slot_drops_are_removed(
    publisher: BlockPublisher, subscriber: Subscriber
) -> None:
    engine = ScriptedEngine(lambda _: [7, 7])
    publisher.follow(engine)
    for start in range(5):  # there are four slots
        generate(engine, [start, *PROMPT])
    events = subscriber.past(1 + 5 * 2 + 1)
    first, second = events[1:3]
    removed = [each for each in events if isinstance(each, BlockRemoved)]
    assert isinstance(first, BlockStored) and isinstance(second, BlockStored)
    assert removed == [BlockRemoved([*first.block_hashes, *second.block_hashes], "GPU")]


def test_a_wrong_request_for_past_events_is_ignored(
    subscriber: Subscriber, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for frames in ((b"", b"short"), (b"",), (b"", b"12345678", b"more")):
        subscriber.replay.send_multipart(frames)
    assert subscriber.ask(0) == []
    assert caplog.text.count("it is ignored") == 3


def test_kept_batches_are_bounded_in_count_and_size() -> None:
    few, small = KeptBatches(most=3), KeptBatches(most_bytes=10)
    for number in range(6):
        few.add(number, b"x")
        small.add(number, b"1234")
    assert [number for number, _ in few.since(0)] == [3, 4, 5]
    assert [number for number, _ in few.since(5)] == [5]
    assert [number for number, _ in small.since(0)] == [4, 5]


def test_an_address_in_use_is_refused_in_words(publisher: BlockPublisher) -> None:
    address = publisher.endpoint.replace("127.0.0.1", "*")
    with pytest.raises(ConfigError, match="block events cannot use"):
        BlockPublisher(address)
    with pytest.raises(ConfigError, match="block events cannot use"):
        BlockPublisher("tcp://127.0.0.1:*", replay="nonsense")


def test_without_pyzmq_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("jaxllama.service.block_events.importlib.import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'jaxllama\[events\]'"):
        BlockPublisher("tcp://127.0.0.1:*")


def test_a_topic_alone_is_refused() -> None:
    for given in ({"kv_events_topic": "t"}, {"kv_events_replay": "tcp://*:1"}):
        with pytest.raises(ConfigError, match="needs --kv-events"):
            Settings(**given)


def test_adapters_have_their_names(publisher: BlockPublisher, subscriber: Subscriber) -> None:
    engine = ScriptedEngine(lambda _: [7, 7])
    engine.adapters = Named()  # type: ignore[assignment]
    publisher.follow(engine)
    slot = engine.slots.slots[engine.slots.claim(0, [1] * (BLOCK + 1), (3, 1.0)).slot]
    slot.cached.extend([1] * BLOCK)
    engine.step()
    stored = subscriber.past(2)[1]
    assert isinstance(stored, BlockStored)
    assert (stored.lora_id, stored.lora_name) == (3, "adapter 3")


class Named:
    """The names of adapters, as the engine's."""

    def name_of(self, id_: int) -> str:
        return f"adapter {id_}"
