"""What every dialect must do: the same tests for each route that generates."""

import asyncio

import pytest

from jaxllama.errors import ConfigError, PluginError
from jaxllama.serve.dialects.openai import OpenAI
from jaxllama.serve.installed import open_dialects
from jaxllama.serve.routing import RouteTable
from jaxllama.serve.settings import Settings
from jaxllama.service.bounds import Bounds
from jaxllama.testing import ScriptedEngine, check_dialect
from tests.serve.conftest import (
    Gate,
    TinyDialect,
    config,
    connect,
    post,
    running,
    scenario,
)
from tests.serve.dialects import ANSWER, WAYS, Way, everyone, read
from tests.support import installed_samplers

STREAMS = [way for way in WAYS if way.stream is not None]
ENDLESS = b"x" * 200

every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
every_stream = pytest.mark.parametrize("way", STREAMS, ids=lambda way: way.name)


def engine_for(answer: bytes, **sizes) -> ScriptedEngine:
    """An engine that knows the knobs of all samplers."""
    size = config(candidates=32, **({"context": 1024} | sizes))
    return ScriptedEngine(lambda _: answer, config=size, samplers=installed_samplers())


def served(way: Way, answer: bytes = ANSWER.encode(), *, sizes=None, **more):
    """A server with all dialects, for one way."""
    del way
    return running(engine_for(answer, **(sizes or {})), dialects=everyone(), **more)


async def ask(live, way: Way, headers=None, **more):
    """Send one request; return status, headers and body."""
    async with live.http.post(
        f"{live.url}{way.path}", json=way.body | more, headers=headers
    ) as response:
        return response.status, response.headers, read(await response.text())


@every_stream
def test_a_stream_has_the_text_of_the_whole_answer(way):
    async def body():
        async with served(way) as live:
            status, _, whole = await ask(live, way)
            assert (status, way.text(whole)) == (way.statuses.get(200, 200), ANSWER)
            async with live.http.post(
                f"{live.url}{way.path}", json=way.body | way.stream
            ) as response:
                raw = await response.text()
                assert response.status == 200, raw
            pieces = [each for each in way.pieces(raw) if each]
            assert "".join(pieces) == ANSWER
            assert len(pieces) >= way.least
            await live.settled()

    scenario(body)


@every_way
@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_slot(way, streams):
    if streams and way.stream is None:
        pytest.skip("it does not stream")

    async def body():
        async with served(way, ENDLESS, sizes={"slots": 1}) as live:
            gate = Gate(live.engine)
            asked = way.body | (way.stream if streams else {})
            _, writer = await connect(live.url, post(asked, path=way.path))
            await gate.advance(lambda: live.engine.counts["running"] == 1)
            writer.close()
            gate.open()
            await live.settled()

    scenario(body)


@every_way
def test_a_full_queue_is_told_in_the_form_of_the_dialect(way):
    async def body():
        bounds = Bounds(queue_requests=2)
        async with served(way, ENDLESS, sizes={"slots": 1}, bounds=bounds) as live:
            gate = Gate(live.engine)
            first = await connect(live.url, post(way.body, path=way.path))
            await gate.advance(lambda: live.engine.slots.claimed == 1)
            second = await connect(live.url, post(way.body, path=way.path))
            await live.until(lambda: live.service.queue.items == 1)
            status, headers, error = await ask(live, way)
            assert status == 429
            assert int(headers["Retry-After"]) >= 1
            assert "wait" in way.message(error)
            gate.open()
            for _, writer in (first, second):
                writer.close()
            await live.settled()

    scenario(body)


@every_way
def test_limits_are_told_in_the_form_of_the_dialect(way):
    async def body():
        async with served(way, body_bytes=4096) as live:
            if way.limit:
                status, _, error = await ask(live, way, **way.limit)
                assert status == way.statuses.get(400, 400)
                assert (way.limited or next(iter(way.limit))) in way.message(error)
            status, _, error = await ask(live, way, padding="x" * 5000)
            assert status == way.statuses.get(413, 413)
            assert "larger than 4096" in way.message(error)

    scenario(body)


@every_way
@pytest.mark.parametrize("strict", [False, True])
def test_unknown_fields_are_never_ignored_silently(way, strict):
    if not way.limit:
        pytest.skip("it has no fields")

    async def body():
        async with served(way, strict=strict) as live:
            status, headers, answer = await ask(live, way, no_such_field=1)
            if strict:
                assert status == way.statuses.get(400, 400)
                assert "no_such_field" in way.message(answer)
            else:
                assert (status, way.text(answer)) == (way.statuses.get(200, 200), ANSWER)
                assert headers["X-Ignored-Fields"] == "no_such_field"

    scenario(body)


@every_way
def test_a_key_is_needed_where_the_dialect_keeps_it(way):
    async def body():
        async with served(way, api_keys=("one",)) as live:
            for headers in ({}, way.key("two"), {"Authorization": "Basic one"}):
                status, _, error = await ask(live, way, headers)
                assert status == way.statuses.get(401, 401)
                assert way.message(error)
            status, _, answer = await ask(live, way, way.key("one"))
            assert (status, way.text(answer)) == (way.statuses.get(200, 200), ANSWER)

    scenario(body)


@every_way
def test_a_server_that_drains_finishes_what_runs_and_takes_no_more(way):
    async def body():
        async with served(way, drain_timeout=20.0) as live:
            gate = Gate(live.engine)
            runs = asyncio.create_task(ask(live, way))
            await live.until(lambda: len(live.service._open) == 1)
            stopping = asyncio.create_task(live.server.stop())
            await live.until(lambda: live.service.is_draining)
            status, headers, error = await ask(live, way)
            assert (status, headers["Connection"]) == (503, "close")
            assert "going away" in way.message(error)
            gate.open()
            status, _, answer = await runs
            assert (status, way.text(answer)) == (way.statuses.get(200, 200), ANSWER)
            assert await stopping

    scenario(body)


@every_way
def test_a_wrong_method_or_path_is_told_in_the_form_of_the_dialect(way):
    async def body():
        async with served(way) as live:
            for method, path, status in (("PUT", way.path, 405), ("POST", f"{way.path}/x/y", 404)):
                async with live.http.request(method, f"{live.url}{path}", json={}) as response:
                    error = read(await response.text())
                    assert response.status == status
                    assert way.message(error)

    scenario(body)


@pytest.mark.parametrize(
    ("path", "status", "keys"),
    [
        ("/v1/nothing", 404, {"error"}),
        ("/v1/messages/nothing", 404, {"error", "type"}),
        ("/v1/messages", 405, {"error", "type"}),
        ("/api/copy", 404, {"error"}),
        ("/api/chat", 405, {"error"}),
        ("/api/populate/x", 404, {"result", "error"}),
        ("/basilisk/nothing", 404, {"error"}),
        ("/nothing", 404, {"error"}),
    ],
)
def test_an_unknown_route_is_refused_in_the_form_of_the_closest_dialect(path, status, keys):
    async def body():
        async with running(dialects=everyone()) as live:
            async with live.http.put(f"{live.url}{path}", json={}) as response:
                error = await response.json()
            assert (response.status, set(error)) == (status, keys)
            is_text = path.startswith(("/api", "/basilisk"))
            assert isinstance(error["error"], str if is_text else dict)

    scenario(body)


@pytest.mark.parametrize("dialect", everyone(), ids=lambda dialect: dialect.name)
def test_every_dialect_keeps_the_contract(dialect):
    check_dialect(type(dialect))
    ways = {way.path for way in WAYS}
    generates = {endpoint.plain_path for endpoint in dialect.endpoints if endpoint.events}
    assert generates - {"/api/pull", "/v1/rooms/{room}/events"} <= ways, (
        "a route that streams is missing among the ways"
    )


@pytest.mark.parametrize("strict", [False, True])
def test_the_description_has_every_route_of_every_dialect(strict):
    async def body():
        dialects = everyone()
        async with running(dialects=dialects, strict=strict) as live:
            async with live.http.get(f"{live.url}/openapi.json") as response:
                assert response.status == 200
                document = await response.json()
            operations = {
                (method.upper(), path): operation
                for path, methods in document["paths"].items()
                for method, operation in methods.items()
            }
            for dialect in dialects:
                for endpoint in dialect.endpoints:
                    if endpoint.path != "/":
                        assert (endpoint.method, endpoint.plain_path) in operations
            names = [operation["operationId"] for operation in operations.values()]
            assert len(set(names)) == len(names)
            kinds = operations["POST", "/api/chat"]["responses"]["200"]["content"]
            assert "application/x-ndjson" in kinds

    scenario(body)


class Nameless(TinyDialect):
    """A dialect without routes."""

    name = ""


def test_a_dialect_that_breaks_the_contract_is_found():
    with pytest.raises(AssertionError, match="has no name"):
        check_dialect(Nameless)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dialects": ("nobody",)}, "no plugin 'nobody'"),
        ({"root_dialect": "nobody"}, "root dialect 'nobody' is not served"),
        ({"dialect_options": ("path",)}, "expected DIALECT.OPTION=VALUE"),
        ({"dialect_options": ("nobody.x=1",)}, "not served"),
        ({"dialect_options": ("openai.x=1",)}, "no option 'x'"),
    ],
)
def test_a_wrong_choice_of_dialects_is_refused(settings, words):
    with pytest.raises((ConfigError, PluginError), match=words):
        open_dialects(Settings(**settings))


def test_only_the_chosen_dialects_answer():
    async def body():
        chosen = everyone(dialects=("native",))
        async with running(dialects=chosen) as live:
            assert await live.status("/tokenize", "POST", json={"text": "hi"}) == 200
            assert await live.status("/v1/completions", "POST", json={"prompt": "hi"}) == 404

    scenario(body)


def test_two_dialects_with_the_same_route_are_refused_by_name():
    table = RouteTable()
    one, two = OpenAI(), OpenAI()
    two.name = "copy"
    for dialect in (one, two):
        table.add(dialect, dialect.routes(None))
    with pytest.raises(ConfigError, match="openai and copy both have the route POST /v1/chat"):
        table.routes()
