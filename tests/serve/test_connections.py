"""Too many connections: idle ones give way, and operators are served whatever the crowd."""

import json
import logging
from dataclasses import dataclass, field

import pytest
from aiohttp import StreamReader

from jaxllama.errors import ConfigError
from jaxllama.serve.crowd import RESERVE, Crowd, group_of
from jaxllama.serve.settings import Settings
from tests.serve.conftest import Gate, connect, post, running, scenario, scripted

ENDLESS = b"x" * 200


def get(path, *more):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *more]).encode() + b"\r\n\r\n"


@dataclass(eq=False)
class Client:
    """A connection of which only the address matters."""

    address: str
    crowd: Crowd
    was_evicted: bool = field(default=False)

    def evict(self):
        self.was_evicted = True


def clients(crowd, address, count, *, busy=False):
    """Connections of one address, each admitted."""
    found = [Client(address, crowd) for _ in range(count)]
    for each in found:
        assert crowd.admit(each)
        if busy:
            crowd.set_busy(each)
    return found


def evicted(found):
    return [each.was_evicted for each in found]


def test_the_connection_that_is_idle_longest_gives_way():
    crowd = Crowd(3, 0)
    old = clients(crowd, "10.0.0.1", 3)
    crowd.set_busy(old[0])
    crowd.set_busy(old[1])
    crowd.set_idle(old[1])  # has answered a request since old[2] came
    (new,) = clients(crowd, "10.0.0.1", 1)
    assert evicted(old) == [False, False, True]
    assert len(crowd) == 3
    assert not crowd.is_spare(new)


def test_the_address_with_most_connections_gives_way():
    crowd = Crowd(6, 0)
    few = clients(crowd, "10.0.0.1", 2)
    many = clients(crowd, "10.0.0.2", 4)
    clients(crowd, "10.0.0.3", 1)
    assert evicted(few) == [False] * 2
    assert evicted(many) == [True, False, False, False]


def test_an_address_at_its_bound_gives_way_to_itself():
    crowd = Crowd(100, 2)
    others = clients(crowd, "10.0.0.1", 2)
    own = clients(crowd, "10.0.0.2", 3)
    assert evicted(own) == [True, False, False]
    assert evicted(others) == [False] * 2
    assert len(crowd) == 4


def test_an_address_whose_connections_are_all_busy_gets_one_in_reserve():
    crowd = Crowd(100, 2)
    clients(crowd, "10.0.0.1", 2, busy=True)
    (third,) = clients(crowd, "10.0.0.1", 1)
    (other,) = clients(crowd, "10.0.0.2", 1)
    assert crowd.is_spare(third)
    assert not crowd.is_spare(other)


def test_the_reserve_is_bounded_and_its_idle_connections_give_way():
    crowd = Crowd(2, 0)
    busy = clients(crowd, "10.0.0.1", 2, busy=True)
    spares = [clients(crowd, "10.0.0.2", 1, busy=True)[0] for _ in range(RESERVE)]
    assert not crowd.admit(Client("10.0.0.3", crowd))
    assert len(crowd) == 2 + RESERVE
    crowd.set_idle(spares[5])
    (new,) = clients(crowd, "10.0.0.3", 1)
    assert spares[5].was_evicted
    assert crowd.is_spare(new)
    assert evicted(busy) == [False] * 2


def test_a_connection_leaves_the_reserve_when_there_is_room():
    crowd = Crowd(1, 0)
    (busy,) = clients(crowd, "10.0.0.1", 1, busy=True)
    spares = clients(crowd, "10.0.0.2", 1, busy=True) + clients(crowd, "10.0.0.2", 1, busy=True)
    assert crowd.is_spare(spares[0])
    crowd.remove(busy)
    crowd.remove(busy)  # told twice: by eviction, and when the socket is closed
    assert not crowd.is_spare(spares[0])
    assert crowd.is_spare(spares[1])


def test_an_empty_crowd_remembers_nobody():
    crowd = Crowd(2, 1)
    for each in clients(crowd, "10.0.0.1", 5) + clients(crowd, "10.0.0.2", 5, busy=True):
        crowd.remove(each)
        crowd.set_idle(each)
        crowd.set_busy(each)
    assert len(crowd) == 0
    assert (crowd._members, crowd._counts, crowd._idle, crowd._spares) == ({}, {}, {}, set())


@pytest.mark.parametrize(
    ("address", "is_trusted"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("", True),  # a socket without addresses
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8:0:1::5", True),
        ("2001:db8:0:2::5", False),
        ("fe80::1%eth0", False),
    ],
)
def test_this_machine_and_trusted_networks_have_no_bound(address, is_trusted):
    crowd = Crowd(100, 1, ["10.0.0.0/8", "192.0.2.7", "2001:db8:0:1::/64"])
    assert crowd.is_trusted(address) is is_trusted
    assert any(evicted(clients(crowd, address, 2))) is not is_trusted


def test_an_ipv6_client_is_its_network():
    assert group_of("2001:db8:0:1::5") == group_of("2001:db8:0:1:ffff::6")
    assert group_of("2001:db8:0:1::5") != group_of("2001:db8:0:2::5")
    assert group_of("::ffff:10.0.0.1") == group_of("10.0.0.1")


def test_a_trusted_address_that_is_none_is_refused_at_start():
    with pytest.raises(ConfigError, match=r"trusted address 'proxy\.lan'.*expected an address"):
        Settings(trusted_addresses=("proxy.lan",))


def test_idle_connections_beyond_the_limit_give_way_to_requests():
    """Three times as many clients connect as there is room for, and say nothing or half a head."""

    async def body():
        async with running(connections=10) as live:
            held = []
            for number in range(30):
                held.append(await connect(live.url, b"GET /hea" if number % 2 else b""))
                assert await live.status("/health") == 200
            assert [await reader.read() for reader, _ in held[:20]] == [b""] * 20
            assert len(live.server.crowd) <= 10
            assert (await live.say())["texts"] == ["Hello!"]
            for _, writer in held:
                writer.close()

    scenario(body)


def test_a_request_that_runs_never_gives_way():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine, connections=3) as live:
            gate = Gate(engine)
            gate.let(3)
            reader, writer = await connect(live.url, post({"stream": True}))
            assert b"200 OK" in await reader.readline()
            held = [await connect(live.url) for _ in range(9)]
            await live.until(lambda: len(live.server.crowd) == 3)
            gate.open()
            assert b"[DONE]" in await reader.readuntil(b"[DONE]")
            for _, each in [(reader, writer), *held]:
                each.close()

    scenario(body)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_operators_are_served_while_every_connection_is_busy(path):
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine, connections=3) as live:
            gate = Gate(engine)
            busy = [await connect(live.url, post({})) for _ in range(3)]
            await live.until(lambda: len(live.service._open) == 3)
            for _ in range(3 * RESERVE):  # connections that are kept open do not fill the reserve
                reader, writer = await connect(live.url, get(path))
                assert b"200 OK" in await reader.readline()
                busy.append((reader, writer))
            async with live.http.post(f"{live.url}/say", json={}) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
                assert (await response.json())["error"]["code"] == "too_many_connections"
            gate.open()
            for reader, _ in busy[:3]:
                assert b"200 OK" in await reader.readline()
            for _, writer in busy:
                writer.close()

    scenario(body)


def test_a_body_that_nobody_waits_for_does_not_hold_a_place():
    """/health is answered before its body comes; then the connection counts as idle."""

    async def body():
        async with running(connections=2) as live:
            held = [await connect(live.url, get("/health", "Content-Length: 9999")) for _ in "ab"]
            for reader, _ in held:
                assert b"200 OK" in await reader.readline()
            assert await live.status("/health") == 200
            for _, writer in held:
                writer.close()

    scenario(body)


def test_the_bound_of_an_address_holds_for_real_connections(monkeypatch):
    """All clients of a test come from this machine, so its addresses are made strangers' here."""
    monkeypatch.setattr(Crowd, "is_trusted", lambda *_: False)

    async def body():
        engine = scripted(ENDLESS)
        async with running(engine, connections_per_address=2) as live:
            gate = Gate(engine)
            busy = [await connect(live.url, post({})) for _ in range(2)]
            await live.until(lambda: len(live.service._open) == 2)
            refused, writer = await connect(live.url, post({}))
            head = await refused.readuntil(b"\r\n\r\n")
            assert b" 503 " in head
            code = json.loads(await refused.readuntil(b"}}"))["error"]["code"]
            assert code == "too_many_connections"
            assert await live.status("/health") == 200
            gate.open()
            writer.close()
            for reader, each in busy:
                assert b"200 OK" in await reader.readline()
                each.close()

    scenario(body)


@pytest.mark.parametrize(
    ("error", "is_logged"), [(RuntimeError("Connection closed."), False), (KeyError("a"), True)]
)
def test_a_client_that_leaves_while_its_refused_body_is_read_is_no_trace_in_the_log(
    monkeypatch, caplog, error, is_logged
):
    left = []

    async def readany(body):
        body._protocol.force_close()
        left.append(body)
        raise error

    monkeypatch.setattr(StreamReader, "readany", readany)

    async def body():
        async with running(body_bytes=10, seconds=20.0) as live:
            _, writer = await connect(live.url, post(b"x" * 20)[:-15])  # 15 bytes do not come
            await live.until(lambda: bool(left))
            writer.close()
            await live.settled()

    with caplog.at_level(logging.ERROR):
        scenario(body)
    assert any("Unhandled" in record.getMessage() for record in caplog.records) is is_logged
