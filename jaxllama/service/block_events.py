"""Block events on a ZeroMQ socket, in vLLM's format, for routers that follow prefixes.

Made by the command line if it is asked to. A thread owns the sockets: it publishes the events that
an engine tells of, and sends the last ones again to subscribers that have missed some. Needs pyzmq,
of the extra `events`. Knows no request.
"""

import importlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from jaxllama.engine.cached_blocks import (
    BLOCK,
    BlockEvent,
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    Medium,
)
from jaxllama.engine.engine import Engine
from jaxllama.errors import ConfigError

logger = logging.getLogger(__name__)

MOST_BATCHES = 10_000  # kept to be sent again
MOST_BYTES = 64 << 20  # of these batches
MOST_UNSENT = 100_000  # batches for a subscriber that does not read; more are dropped
SEQUENCE_BYTES = 8
LAST = (-1).to_bytes(SEQUENCE_BYTES, "big", signed=True)  # the number after the last batch
RANK = 0  # of this engine among several that serve one model together
LINGER_MS = 1000  # at the end, for batches that are on their way
MEDIA = {Medium.DEVICE: "GPU", Medium.HOST: "CPU"}  # vLLM's words
ASKING_FRAMES = 3  # the subscriber, nothing, and the first number that it wants

AdapterName = Callable[[int], str | None]  # by the id of a loaded adapter


class KeptBatches:
    """The newest published batches of events with their numbers, bounded in count and bytes."""

    def __init__(self, most: int = MOST_BATCHES, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._batches: deque[tuple[int, bytes]] = deque()
        self._bytes = 0

    def add(self, number: int, payload: bytes) -> None:
        """Keep an encoded batch of events, and drop the oldest ones if there are too many.

        `number` is the number of the batch, `payload` are its bytes.
        """
        self._batches.append((number, payload))
        self._bytes += len(payload)
        while len(self._batches) > self._most or self._bytes > self._most_bytes:
            self._bytes -= len(self._batches.popleft()[1])

    def since(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Yield the kept batches whose number is at least `number`, as (number, bytes)."""
        return (each for each in self._batches if each[0] >= number)


class BlockPublisher:
    """Publishes the block events of an engine to ZeroMQ subscribers until `close` is called."""

    def __init__(self, endpoint: str, *, topic: str = "", replay: str | None = None) -> None:
        """Open the ZeroMQ sockets that publish which KV cache blocks an engine has.

        Raises ConfigError if that fails or pyzmq is missing.

        `endpoint` is the address to publish at. As in vLLM, the socket is bound to it if it has a *
        or ::, or is no TCP address; otherwise the socket connects to it. `topic` is the first frame
        of every message. At the address `replay`, subscribers ask for batches that they have
        missed; None: they cannot.
        """
        self._zmq = zmq = imported()
        self._topic = topic.encode()
        self._context = zmq.Context()
        self._numbers = itertools.count()
        self._kept = KeptBatches()
        self._batches: deque[bytes] = deque()
        self._lock = threading.Lock()  # of the socket that wakes the thread
        try:
            self._out = self._socket(zmq.PUB, endpoint, is_bound=is_bound(endpoint))
            self._replay: Any = None  # where batches are asked for again
            if replay is not None:
                self._replay = self._socket(zmq.ROUTER, replay, is_bound=True)
            self._wakes = self._socket(zmq.PULL, "inproc://wake", is_bound=True)
            self._waking = self._socket(zmq.PUSH, "inproc://wake", is_bound=False)
        except ConfigError:
            self._context.destroy(linger=0)
            raise
        self.endpoint, self.replay = address_of(self._out), address_of(self._replay)
        self._thread = threading.Thread(target=self._run, name="block events", daemon=True)
        self._thread.start()

    def follow(self, engine: Engine) -> None:
        """Publish the KV cache blocks that `engine` has now, and from now on every change."""

        def name_of(adapter: int) -> str | None:
            return None if engine.adapters is None else engine.adapters.name_of(adapter)

        engine.tell_of_blocks(lambda events: self._send(batch_of(events, name_of)))

    def close(self) -> None:
        """Publish the batches that are queued, and close the sockets."""
        self._send(b"")
        self._thread.join()
        self._waking.close(linger=0)
        self._context.term()

    def _socket(self, kind: int, endpoint: str, *, is_bound: bool) -> Any:
        socket = self._context.socket(kind)
        socket.set_hwm(MOST_UNSENT)
        try:
            (socket.bind if is_bound else socket.connect)(endpoint)
        except self._zmq.ZMQError as error:
            raise ConfigError(f"block events cannot use {endpoint!r}: {error}") from error
        return socket

    def _send(self, batch: bytes) -> None:
        """Queue an encoded batch for the publishing thread, without waiting.

        An empty batch ends the thread.
        """
        with self._lock:
            try:
                self._waking.send(batch, self._zmq.DONTWAIT)
            except self._zmq.Again:
                logger.warning("block events are lost: %d batches wait already", MOST_UNSENT)

    def _run(self) -> None:
        """Run the thread: publish batches and answer subscribers until an empty batch arrives."""
        sockets = [each for each in (self._wakes, self._replay) if each is not None]
        poller = self._zmq.Poller()
        for each in sockets:
            poller.register(each, self._zmq.POLLIN)
        is_open = True
        while is_open:
            ready = dict(poller.poll())
            try:
                if self._replay in ready:
                    self._send_again(self._replay.recv_multipart())
                if self._wakes in ready:
                    is_open = self._publish(self._wakes.recv())
            except self._zmq.ZMQError:
                logger.exception("block events could not be sent")
        for each in (*sockets, self._out):
            each.close(linger=LINGER_MS)

    def _publish(self, batch: bytes) -> bool:
        """Send a batch to all subscribers; return False if it is empty."""
        if not batch:
            return False
        number = next(self._numbers)
        self._kept.add(number, batch)
        self._out.send_multipart((self._topic, sequence(number), batch))
        return True

    def _send_again(self, frames: Sequence[bytes]) -> None:
        """Send a subscriber all kept batches again, beginning with the number that it asks for.

        `frames` are the parts of the subscriber's message: its id, an empty part, the number.
        """
        if len(frames) != ASKING_FRAMES or len(frames[2]) != SEQUENCE_BYTES:
            logger.debug("a request for past block events is not 8 bytes; it is ignored")
            return
        subscriber, _, first = frames
        for number, batch in self._kept.since(int.from_bytes(first, "big")):
            self._replay.send_multipart((subscriber, b"", sequence(number), batch))
        self._replay.send_multipart((subscriber, b"", LAST, b""))


def imported() -> Any:
    """Import pyzmq; raise ConfigError if it is not installed."""
    try:
        return importlib.import_module("zmq")
    except ImportError as error:
        raise ConfigError(
            "block events need pyzmq, which is not installed: pip install 'jaxllama[events]'"
        ) from error


def address_of(socket: Any) -> str:
    """Return the address of a socket, with the port that the system chose; "" for None."""
    return "" if socket is None else socket.last_endpoint.decode().rstrip("\0")


def is_bound(endpoint: str) -> bool:
    """Say whether to bind a socket to the address (vLLM's rule), rather than to connect to it."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))


def sequence(number: int) -> bytes:
    """Return the number of a batch as 8 bytes, big-endian, for a frame of a message."""
    return number.to_bytes(SEQUENCE_BYTES, "big")


# The format: arrays, whose fields have these places.


def batch_of(events: Sequence[BlockEvent], adapter_name: AdapterName) -> bytes:
    """Encode a batch of events as msgpack: the time, the events, and the rank of this engine.

    `adapter_name` returns the name of a loaded adapter by its id.
    """
    return msgspec.msgpack.encode(
        (time.time(), [fields_of(each, adapter_name) for each in events], RANK)
    )


def fields_of(event: BlockEvent, adapter_name: AdapterName) -> tuple[Any, ...]:
    """Return one event as vLLM's array of fields, which begins with the event's name.

    `adapter_name` returns the name of a loaded adapter by its id.
    """
    match event:
        case BlocksStored(blocks, medium):
            hashes, adapter = [each.hash for each in blocks], blocks[0].adapter
            return (
                "BlockStored",
                hashes,
                blocks[0].parent,
                event.tokens,
                BLOCK,
                None if adapter is None else adapter[0],
                MEDIA[medium],
                None if adapter is None else adapter_name(adapter[0]),
            )
        case BlocksRemoved(hashes_, medium):
            return ("BlockRemoved", hashes_, MEDIA[medium])
        case BlocksCleared():
            return ("AllBlocksCleared",)


__all__ = ["BLOCK", "BlockPublisher", "KeptBatches"]
