"""The description of the API is true, and what is asked by it is answered by it."""

import asyncio
import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import hypothesis
import pytest
import requests

from jaxllama.limits import FRONT, LIMITS
from jaxllama.serve import dashboard, operations
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.dialects import native, openai
from jaxllama.serve.dialects.openai.batches import CREATE_BATCH
from jaxllama.serve.endpoints import RequestShape
from jaxllama.testing import ScriptedEngine
from tests.serve.clients import DIALECTS, HI, asked, post, saying
from tests.serve.conftest import config, running, scenario
from tests.serve.dialects import everyone
from tests.support import installed_samplers

EXAMPLES = 10  # per route and mode
ENDPOINTS = (
    openai.ENDPOINTS
    | native.Native().endpoints
    | operations.Operations().endpoints
    | dashboard.Dashboard().endpoints
)
ASKED = [endpoint for endpoint in ENDPOINTS if endpoint.body is not None]

# What bounds a field that has no row of its own, and no number or length to bound.
OTHERWISE = {
    "prompt": "the context",
    "input": "the context, and rows `prompts` and `inputs`",
    "tokens": "the bytes of a body",
    "text": "the bytes of a body",
    "content": "the bytes of a body",
    "instructions": "the context",
    "modalities": "the bytes of a body",
    "format": "the names of what is installed",
    "model": "the one name that is served",
    "input_file_id": "the files that are kept",
    "previous_response_id": "the responses that are kept",
    "query": "the context",
    "text_1": "as many as row `text_2`, and the context",
    "endpoint": "the endpoints that a batch may have",
}
LITERAL = re.compile(r"typing.Literal\[[^]]*\]")


@contextlib.contextmanager
def served(dialects: Sequence[Dialect] = DIALECTS) -> Iterator[str]:
    """The address of a server in another thread, for clients that block."""
    ready, urls, ends = threading.Event(), [], []

    async def main() -> None:
        samplers = installed_samplers()
        size = config(candidates=32, context=2048)
        engine = ScriptedEngine(lambda _: b"ok", config=size, samplers=samplers)
        async with running(engine, dialects=dialects, seconds=300) as live:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            urls.append(live.url)
            ends.append(lambda: loop.call_soon_threadsafe(stop.set))
            ready.set()
            await stop.wait()

    def serve() -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(20)
    try:
        yield urls[0]
    finally:
        ends[0]()
        thread.join()


def test_no_request_by_the_schema_or_against_it_is_answered_otherwise():
    import schemathesis  # noqa: PLC0415 - takes seconds, in every process that collects tests

    statuses: Counter[int] = Counter()
    with served() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in operations:
            if operation.body:
                for mode in schemathesis.GenerationMode:
                    examine(operation, mode, url, statuses)
    assert statuses[200] > 10
    assert statuses[400] > 100


def test_no_request_to_an_api_of_another_system_breaks_the_server():
    import schemathesis  # noqa: PLC0415

    statuses: Counter[int] = Counter()
    others = [each for each in everyone() if each.name not in ("openai", "native")]
    with served(others) as url, requests.Session() as session:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for operation in (found.ok() for found in schema.get_all_operations()):
            if operation.body:
                for mode in schemathesis.GenerationMode:
                    ask_often(operation, mode, url, session, statuses)
    broken = {status for status in statuses if status >= 500 and status != 501}  # 501: no encoder
    assert not broken and statuses[200] > 10 and statuses[400] > 50


def ask_often(operation: Any, mode: Any, url: str, session: Any, statuses: Counter[int]) -> None:
    @hypothesis.seed(1)
    @hypothesis.settings(
        max_examples=4,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def answers(case: Any) -> None:
        statuses[case.call(base_url=url, session=session).status_code] += 1

    answers()


def examine(operation: Any, mode: Any, url: str, statuses: Counter[int]) -> None:
    from schemathesis.checks import not_a_server_error  # noqa: PLC0415
    from schemathesis.specs.openapi import checks  # noqa: PLC0415

    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
    ]
    with requests.Session() as session:

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def answers(case: Any) -> None:
            response = case.call(base_url=url, session=session)
            statuses[response.status_code] += 1
            case.validate_response(response, checks=wanted)

        answers()


def described(**settings: Any) -> dict[str, Any]:
    """The description a server gives."""
    found: dict[str, Any] = {}

    async def body():
        samplers = installed_samplers()
        size = config(candidates=32)
        engine = ScriptedEngine(lambda _: b"ok", config=size, samplers=samplers)
        async with (
            asked(engine, **settings) as (live, _),
            live.http.get(f"{live.url}/openapi.json") as got,
        ):
            found.update(await got.json())

    scenario(body)
    return found


def test_every_route_is_described_and_every_reference_leads_somewhere():
    document = described()
    told = {(path, method.upper()) for path, each in document["paths"].items() for method in each}
    assert told == {(endpoint.plain_path, endpoint.method) for endpoint in ENDPOINTS}
    for reference in set(re.findall(r"'#/components/(\w+)/(\w+)'", str(document))):
        assert reference[1] in document["components"][reference[0]]


def test_each_event_of_a_stream_is_described_as_an_object_with_data():
    paths = described()["paths"]
    content = paths["/v1/responses"]["post"]["responses"]["200"]["content"]
    schema = content["text/event-stream"]["schema"]
    assert (schema["type"], schema["required"]) == ("object", ["data"])


def test_knobs_are_described_with_their_bounds():
    fields = described()["components"]["schemas"]["ChatBody"]["properties"]
    assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0.0, "maximum": 100.0}
    assert fields["top_p"]["anyOf"][0] == {"type": "number", "minimum": 0.0, "maximum": 1.0}
    assert fields["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 16}
    assert fields["audio"]["enum"] == [None, False, 0, "", [], {}]
    assert fields["store"]["description"].startswith("of no effect")


def test_aliases_are_described_with_their_field():
    fields = described()["components"]["schemas"]["ChatBody"]["properties"]
    assert fields["repetition_penalty"]["x-aliases"] == ["repeat_penalty", "rep_pen"]
    assert "n_predict" in fields["max_tokens"]["description"]
    assert "repeat_penalty" not in fields


def test_a_strict_server_says_that_it_takes_no_other_fields():
    lenient = described()["components"]["schemas"]["ChatBody"]
    strict = described(strict=True)["components"]["schemas"]["ChatBody"]
    assert "additionalProperties" not in lenient
    assert strict["additionalProperties"] is False
    assert strict["properties"]["repeat_penalty"]["anyOf"][0]["minimum"] == 0.01


def unbounded(body: type[RequestShape]) -> list[str]:
    """Fields that could be arbitrarily large or long."""
    rows = FRONT.keys() | OTHERWISE.keys() | body.unsupported.keys()
    numbers_and_texts = re.compile(r"^(?!typing.ClassVar).*\b(int|float|str|list|dict)\b")
    return [
        name
        for name, kind in body.__annotations__.items()
        if numbers_and_texts.search(LITERAL.sub("", str(kind))) and name not in rows
    ]


@pytest.mark.parametrize("endpoint", ASKED, ids=lambda endpoint: endpoint.path)
def test_every_field_has_a_bound(endpoint):
    for shape in endpoint.body.__mro__:
        if issubclass(shape, RequestShape):
            assert unbounded(shape) == []


def test_a_field_without_a_bound_is_noticed():
    class Careless(RequestShape):
        how_many: int | None = None

    assert unbounded(Careless) == ["how_many"]


def too_much(name: str) -> Any:
    """A value just over the limit of a row; None if it has none."""
    row = (LIMITS | FRONT)[name]
    if row.many:
        return ["x"] * (row.most + 1) if row.kind is str else [1] * (row.most + 1)
    if row.longest:
        return "x" * (row.longest + 1)
    return None if row.high is None else row.high + 1


SENT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "logprobs": True},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/embeddings": {"input": "a"},
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "a"},
    "/v1/unload_lora_adapter": {"lora_name": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/score": {"text_1": "a", "text_2": ["b"]},
    "/tokenize": {"text": "a"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": HI},
    "/score": {"prompt": "a", "continuations": ["b"]},
    "/classify": {"prompt": "a", "labels": ["b"]},
    "/explain": {"prompt": "a"},
    "/explain/replay": {"recording": "none"},
}
SHAPED = {  # rows whose entries are not texts
    "messages": HI * 2049,
    "tools": [{"type": "function", "function": {"name": "f"}}] * 129,
    "metadata": {str(number): "" for number in range(17)},
    "what_if": {str(number): 1 for number in range(65)},
}


def test_every_limit_holds_on_every_route():
    async def body():
        async with asked() as (live, _):
            tried: Counter[str] = Counter()
            for endpoint in ASKED:
                if endpoint is CREATE_BATCH:  # needs a folder; see test_batches.py
                    continue
                fields = set(endpoint.body.__struct_fields__)
                names = fields & FRONT.keys() | (LIMITS.keys() if endpoint.takes_knobs else set())
                for name in sorted(names - endpoint.body.unsupported.keys()):
                    value = SHAPED.get(name, too_much(name))
                    if value is None:
                        continue
                    sent = {**SENT[endpoint.path], name: value}
                    error = (await post(live, endpoint.path, sent, 400))["error"]
                    assert error["param"] == name, (endpoint.path, error)
                    tried[name] += 1
            assert {"n", "messages", "temperature", "stop", "labels", "user"} <= tried.keys()
            assert live.engine.ledger["accepted"] == 1

    scenario(body)


def test_every_call_has_the_group_of_its_dialect():
    async def body():
        async with asked() as (live, _), live.http.get(f"{live.url}/openapi.json") as response:
            paths = (await response.json())["paths"]
            groups = {
                tuple(each["tags"]) for methods in paths.values() for each in methods.values()
            }
            assert groups == {("openai",), ("native",), ("operations",), ("dashboard",)}

    scenario(body)


def test_the_parts_of_the_description_are_as_in_the_whole():
    async def body():
        async with running(saying(b"ok"), dialects=everyone()) as live:

            async def read(query: str = "") -> dict[str, Any]:
                async with live.http.get(f"{live.url}/openapi.json{query}") as response:
                    assert response.status == (404 if "none" in query else 200)
                    return await response.json()

            whole, outline = await read(), await read("?outline=true")
            named = ("operationId", "summary", "tags")
            assert outline["paths"] == {
                path: {
                    method: {name: operation[name] for name in named}
                    for method, operation in methods.items()
                }
                for path, methods in whole["paths"].items()
            }
            for path, methods in outline["paths"].items():
                for method, operation in methods.items():
                    part = await read(f"?operation={operation['operationId']}")
                    assert list(part["paths"]) == [path]
                    assert part["paths"][path][method] == whole["paths"][path][method]
                    for kind, name in set(re.findall(r"'#/components/(\w+)/(\w+)'", str(part))):
                        assert name in part["components"][kind]
            assert "there is no operation" in str(await read("?operation=none"))

    scenario(body)


def test_a_key_is_asked_for_in_the_description_where_there_is_one():
    async def body():
        for keys, security in (((), None), (("secret",), [{"key": []}])):
            async with (
                asked(api_keys=keys) as (live, _),
                live.http.get(f"{live.url}/openapi.json") as response,
            ):
                assert (await response.json()).get("security") == security

    scenario(body)
