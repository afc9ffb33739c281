"""Connections between hosts: who may join, what is told, and when a host counts as lost."""

import functools
import queue
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from jaxllama import hosts
from jaxllama.engine.remote_calls import encode_call, repeat_calls
from jaxllama.engine.steps import Runs
from jaxllama.errors import JaxLlamaError
from jaxllama.hosts import CALL, HEADER, HostGroup, HostLink, greet
from jaxllama.request import AdapterUse


def connected() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        other = socket.create_connection(server.getsockname())
        return server.accept()[0], other


class Pair:
    """Host 0 and host 1 of a group, connected within this process."""

    def __init__(self) -> None:
        ends = connected()
        self.lost: queue.Queue[str] = queue.Queue()
        self.links = [HostLink(1, ends[0]), HostLink(0, ends[1])]
        self.leader, self.other = (
            HostGroup(index, [link], self.lost.put) for index, link in enumerate(self.links)
        )


@pytest.fixture
def pair(monkeypatch) -> Iterator[Pair]:
    monkeypatch.setattr(hosts, "LOST_SECONDS", 1.0)
    monkeypatch.setattr(hosts, "BEAT_SECONDS", 0.1)
    made = Pair()
    yield made
    made.leader.end()
    for link in made.links:
        link.close()


def test_calls_arrive_in_order_until_the_group_ends(pair: Pair):
    for number in range(3):
        pair.leader.tell(b"call %d" % number)
    pair.leader.end()
    found = [pair.other.next_call() for _ in range(4)]
    assert found == [b"call 0", b"call 1", b"call 2", None]
    pair.leader.tell(b"too late")  # nobody is there any more: no error
    pair.links[0].close()
    assert pair.lost.empty()


def test_only_host_0_tells_calls(pair: Pair):
    with pytest.raises(JaxLlamaError, match="host 1 only follows host 0"):
        pair.other.tell(b"call")


def test_a_host_that_stops_asks_host_0(pair: Pair, monkeypatch):
    signals: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(hosts.os, "kill", lambda _, number: signals.put(number))
    pair.other.ask_to_stop()
    assert signals.get(timeout=5) == hosts.signal.SIGTERM


def test_hosts_that_loaded_different_programs_do_not_start(pair: Pair):
    pair.leader.compare("a key")
    with pytest.raises(JaxLlamaError, match="host 1 has loaded another model"):
        pair.other.compare("another key")


def test_a_broken_connection_is_a_lost_host(pair: Pair):
    pair.links[1].close()
    told = {pair.lost.get(timeout=5)[:14] for _ in range(2)}  # one from each end
    assert told == {"host 0 is lost", "host 1 is lost"}


def test_silence_is_a_lost_host(monkeypatch):
    monkeypatch.setattr(hosts, "LOST_SECONDS", 0.5)
    ours, silent = connected()
    lost: queue.Queue[str] = queue.Queue()
    HostGroup(0, [HostLink(1, ours)], lost.put)
    assert "no word from it" in lost.get(timeout=5)
    silent.close()
    ours.close()


@pytest.mark.parametrize(
    ("raw", "index"),
    [
        (HEADER.pack(CALL, 5) + b"key 3", 3),
        (HEADER.pack(CALL, 5) + b"yek 3", None),
        (HEADER.pack(CALL, 5) + b"key x", None),
        (HEADER.pack(CALL, 1 << 30), None),
        (b"GET / HTTP/1.1\r\n\r\n", None),
    ],
)
def test_who_knows_the_key_may_join(raw: bytes, index: int | None):
    ours, theirs = connected()
    theirs.sendall(raw)
    theirs.shutdown(socket.SHUT_WR)
    link = greet(ours, "key")
    assert (link.index if link else None) == index
    ours.close()
    theirs.close()


class Calls:
    """In place of a batch: `told` is a method that host 0 calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def keep(self, *given: Any, **named: Any) -> None:
        self.seen.append((*given, named))

    @functools.wraps(keep)
    def told(self) -> None:
        raise AssertionError("expected that the method within is called")


def test_a_call_is_repeated_with_the_same_arguments():
    ids = np.arange(5, dtype=np.int32).reshape(1, 5)
    runs = Runs(*(np.full(2, number, np.int32) for number in range(4)))
    use = AdapterUse(7, 1, 0.5)
    call = encode_call("told", (np.int32(3), ids, None, runs, use), {"lean": True, "use": use})
    calls = Calls()
    repeat_calls(calls, iter([call, None]).__next__)
    ((number, array, nothing, found, used, named),) = calls.seen
    assert (number, nothing, used, named) == (3, None, use, {"lean": True, "use": use})
    assert array.dtype == np.int32 and array.tolist() == ids.tolist()
    assert isinstance(found, Runs)
    assert [each.tolist() for each in found] == [[n, n] for n in range(4)]


def test_what_is_no_call_of_every_host_is_refused():
    for name in ("keep", "nothing"):
        with pytest.raises(JaxLlamaError, match="the same version of jaxllama"):
            repeat_calls(Calls(), iter([encode_call(name, (), {})]).__next__)
    with pytest.raises(TypeError, match="object cannot be sent"):
        encode_call("told", (object(),), {})
