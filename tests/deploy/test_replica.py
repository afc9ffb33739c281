"""A replica: the server behind a socket of the file system, asked by parcels."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager

import pytest

from jaxllama.deploy.parcel import Accepted, Head, Parcel
from jaxllama.deploy.replica import Replica
from jaxllama.errors import CheckpointError, EngineStopped
from jaxllama.serve.fronted import SENDER
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model
from jaxllama.service.served_models import ServedModels
from tests.serve.conftest import Gate, TinyDialect, events_of, intake_for, scenario, scripted

JSON = (("Content-Type", "application/json"), ("Host", "localhost"))


@asynccontextmanager
async def replica_of(engine=None, **settings):
    engine = engine or scripted()
    service = GenerationService(lambda: Model("m", engine, intake_for(engine)), Settings().bounds)
    chosen = Settings(**{"drain_timeout": 0.0, **settings})
    replica = Replica("a", ServedModels.single(service), chosen, [TinyDialect()])
    await replica.start()
    try:
        async with asyncio.timeout(30):
            yield replica, service
    finally:
        assert await replica.stop()


def say(*headers, **body) -> Parcel:
    return Parcel("POST", "/say", (*JSON, *headers), json.dumps(body).encode())


async def parts_of(replica: Replica, parcel: Parcel):
    accepted, head, *data = [each async for each in replica.answer(parcel)]
    assert accepted == Accepted("a")
    return head, b"".join(data)


def test_an_answer_has_its_status_headers_and_body():
    async def test():
        async with replica_of() as (replica, _):
            head, body = await parts_of(replica, say(prompt="x"))
            assert head.status == 200 and not head.is_stream
            assert dict(head.headers)["Content-Length"] == str(len(body))
            assert json.loads(body)["texts"] == ["Hello!"]
            head, body = await parts_of(replica, say(prompt=3))
            assert head.status == 400 and "error" in json.loads(body)

    scenario(test)


def test_a_stream_comes_in_whole_events_and_brings_its_last_words():
    async def test():
        async with replica_of() as (replica, _):
            _, head, *data = [each async for each in replica.answer(say(stream=True))]
            assert isinstance(head, Head) and head.is_stream
            assert all(each.endswith(b"\n\n") for each in data)
            assert events_of(b"".join(data).decode())[-1] == "[DONE]"
            [last] = events_of(head.last_words.decode())
            assert last["error"]["code"] == "replica_lost"
            assert not any("jaxllama" in name.lower() for name, _ in head.headers)

    scenario(test)


def test_closing_the_iterator_cancels_the_request():
    async def test():
        engine = scripted(b"x" * 100)
        async with replica_of(engine) as (replica, service):
            gate = Gate(engine)
            async with aclosing(replica.answer(say(stream=True))) as parts:
                gate.let(3)
                await anext(parts)
                await anext(parts)
            gate.open()
            while service.thread.pulse.busy_since is not None or service.queue:
                await asyncio.sleep(0.001)
            assert gate.steps < 90

    scenario(test)


def test_clients_are_told_apart_by_the_sender_that_the_gateway_names():
    async def test():
        async with replica_of() as (replica, service):
            seen = []
            submit = service.open

            def watched(ask, caller):
                seen.append(caller.client)
                return submit(ask, caller)

            service.open = watched
            for sender in ("192.0.2.1", "192.0.2.2"):
                await parts_of(replica, say((SENDER, sender), prompt="x"))
            assert seen == ["at 192.0.2.1", "at 192.0.2.2"]

    scenario(test)


def test_the_guard_judges_by_the_address_that_clients_see():
    async def test():
        for host, status in (("127.0.0.1", 403), ("0.0.0.0", 200)):
            async with replica_of(host=host) as (replica, _):
                parcel = Parcel("GET", "/ready", (("Host", "example.org"),), b"")
                head, _ = await parts_of(replica, parcel)
                assert head.status == status

    scenario(test)


def test_a_model_that_cannot_be_loaded_ends_the_start():
    async def test():
        def fail():
            raise CheckpointError("no such model")

        service = GenerationService(fail, Settings().bounds)
        replica = Replica("a", ServedModels.single(service), Settings(), [TinyDialect()])
        with pytest.raises(CheckpointError, match="no such model"):
            await replica.start()

    scenario(test)


def test_health_is_that_of_the_engine():
    async def test():
        engine = scripted()
        async with replica_of(engine) as (replica, _):
            replica.check_health()

            def broken():
                raise RuntimeError("broken")

            engine.step = broken
            with pytest.raises(EngineStopped, match="failed"):
                for _ in range(2000):
                    await parts_of(replica, say(prompt="x"))
                    replica.check_health()

    scenario(test)
