"""Several models in one server: loaded when they are named, within a budget, and unloaded."""

import asyncio

import aiohttp
import pytest

from jaxllama.errors import CheckpointError, ConfigError
from jaxllama.serve.endpoints import Endpoint
from jaxllama.service.served_models import ModelRules, ServedModels
from tests.serve.conftest import Gate, ScriptedPlan, connect, post, running, scenario, serving
from tests.serve.dialects import WAYS, everyone, read

ENDLESS = b"x" * 900


def pair(**more):
    """Two models that answer with their names; `more` are arguments of both plans."""
    return [ScriptedPlan(name, name.encode(), more=dict(more)) for name in ("one", "two")]


def endpoint_at(path: str) -> Endpoint:
    """The endpoint of any dialect at a path."""
    return next(
        endpoint
        for dialect in everyone()
        for endpoint in dialect.endpoints
        if (endpoint.method, endpoint.path) == ("POST", path)
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_dialect_asks_the_model_that_a_request_names(way):
    async def body():
        async with serving(*pair(), dialects=everyone()) as live:
            is_in_body = "model" in endpoint_at(way.path).model_fields
            for name in ("two", "one"):
                named = {"model": name} if is_in_body else {}
                query = "" if is_in_body else f"?model={name}"
                asked = {key: value for key, value in way.body.items() if key != "model"} | named
                status, answer = await live.ask(f"{way.path}{query}", **asked)
                assert status == way.statuses.get(200, 200), answer
                assert way.text(answer).strip().endswith(name)

    scenario(body)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_an_unknown_model_is_told_in_the_form_of_the_dialect_with_the_names_there_are(way):
    async def body():
        scripts = pair()
        async with serving(*scripts, dialects=everyone()) as live:
            is_in_body = "model" in endpoint_at(way.path).model_fields
            named = {"model": "three"} if is_in_body else {}
            query = "" if is_in_body else "?model=three"
            status, error = await live.ask(f"{way.path}{query}", **way.body | named)
            assert status == 404
            assert all(f"'{name}'" in way.message(error) for name in ("one", "two", "three"))
            assert not any(each.loads for each in scripts)

    scenario(body)


def test_a_request_without_a_model_gets_the_default_one():
    async def body():
        async with serving(*pair(), dialects=everyone(), default="two") as live:
            assert await live.say() == "two"
            assert live.state("one") == "unloaded"

    scenario(body)


def test_a_model_answers_to_its_aliases_and_is_called_by_them():
    async def body():
        script = ScriptedPlan("one", more={"aliases": frozenset({"gpt"})})
        async with serving(script, *pair()[1:], dialects=everyone()) as live:
            status, found = await live.ask(prompt="hi", model="gpt")
            assert (status, found["model"]) == (200, "gpt")
            status, found = await live.ask(
                "/api/generate", model="gpt:latest", prompt="", stream=False
            )
            assert (status, found["done_reason"]) == (200, "load")

    scenario(body)


def test_two_requests_for_a_model_load_it_once():
    async def body():
        one, two = pair()
        one.gate.clear()
        async with serving(one, two, dialects=everyone()) as live:
            asked = [asyncio.create_task(live.say("one")) for _ in range(5)]
            await live.until(lambda: live.models.find("one").users == 5)
            one.gate.set()
            assert await asyncio.gather(*asked) == ["one"] * 5
            assert one.loads == 1

    scenario(body)


def test_while_a_model_loads_the_others_answer():
    async def body():
        one, two = pair()
        async with serving(one, two, dialects=everyone()) as live:
            assert await live.say("two") == "two"
            one.gate.clear()
            waiting = asyncio.create_task(live.say("one"))
            await live.until(lambda: one.loads == 1)
            assert await live.say("two") == "two"
            found = await live.get("/v1/models")
            assert {each["id"]: each["state"] for each in found["data"]} == {
                "one": "loading",
                "two": "loaded",
            }
            one.gate.set()
            assert await waiting == "one"

    scenario(body)


def test_a_client_that_leaves_while_it_waits_does_not_stop_the_load_for_others():
    async def body():
        one, two = pair()
        one.gate.clear()
        async with serving(one, two, dialects=everyone()) as live:
            asked = {"model": "one", "prompt": "hi"}
            _, writer = await connect(live.url, post(asked, path="/v1/completions"))
            await live.until(lambda: one.loads == 1)
            other = asyncio.create_task(live.say("one"))
            await live.until(lambda: live.models.find("one").users == 2)
            writer.close()
            await live.until(lambda: live.models.find("one").users == 1)
            one.gate.set()
            assert await other == "one"
            assert one.loads == 1

    scenario(body)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
    ],
)
def test_the_client_of_a_stream_is_told_that_its_model_loads(path, asked):
    async def body():
        one, two = pair()
        one.gate.clear()
        async with serving(one, two, dialects=everyone(), ping_seconds=0.01) as live:
            sent = {"model": "one", "stream": True, **asked}
            async with live.http.post(f"{live.url}{path}", json=sent) as response:
                assert response.status == 200
                assert response.headers["Content-Type"].startswith("text/event-stream")
                assert await response.content.readline() == b": loading model one\n"
                one.gate.set()
                text = await response.text()
            assert "one" in text.replace(": loading model one", "")
            assert ("[DONE]" in text) == (path == "/v1/completions")

    scenario(body)


def test_a_load_that_fails_in_a_begun_stream_is_an_event_of_it():
    async def body():
        one, two = pair()
        one.gate.clear()
        one.failure = CheckpointError("the file is cut off")
        async with serving(one, two, dialects=everyone(), ping_seconds=0.01) as live:
            sent = {"model": "one", "stream": True, "prompt": "hi"}
            async with live.http.post(f"{live.url}/v1/completions", json=sent) as response:
                assert await response.content.readline() == b": loading model one\n"
                one.gate.set()
                assert "the file is cut off" in await response.text()

    scenario(body)


def test_a_wrong_request_in_a_begun_stream_is_an_event_of_it():
    async def body():
        one, two = pair()
        one.gate.clear()
        async with serving(one, two, dialects=everyone(), ping_seconds=0.01) as live:
            sent = {"model": "one", "stream": True, "prompt": "hi", "max_tokens": -4}
            async with live.http.post(f"{live.url}/v1/completions", json=sent) as response:
                assert await response.content.readline() == b": loading model one\n"
                one.gate.set()
                assert "max_tokens" in await response.text()

    scenario(body)


def test_a_request_that_waits_too_long_is_told_to_come_back_and_the_load_goes_on():
    async def body():
        one, two = pair()
        one.gate.clear()
        async with serving(one, two, dialects=everyone(), load_seconds=0.01) as live:
            asked = {"model": "one", "prompt": "hi"}
            async with live.http.post(f"{live.url}/v1/completions", json=asked) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) >= 1
                assert "goes on loading" in await response.text()
            one.gate.set()
            await live.until(lambda: live.state("one") == "loaded")
            assert await live.say("one") == "one"
            assert one.loads == 1

    scenario(body)


def test_the_least_recently_used_idle_model_makes_room():
    async def body():
        scripts = [ScriptedPlan(name, name.encode()) for name in ("one", "two", "three")]
        async with serving(*scripts, dialects=everyone(), memory=250) as live:
            await live.say("one")
            await live.say("two")
            await live.say("one")  # so two is the one that was not used longest
            await live.say("three")
            states = [live.state(name) for name in ("one", "two", "three")]
            assert states == ["loaded", "unloaded", "loaded"]
            assert await live.say("two") == "two"
            assert live.state("one") == "unloaded"

    scenario(body)


def test_a_model_that_answers_is_never_unloaded_for_another():
    async def body():
        one, two = ScriptedPlan("one", ENDLESS), ScriptedPlan("two", b"two")
        async with serving(one, two, dialects=everyone(), memory=150) as live:
            await live.ask("/models/load", model="one")
            gate = Gate(one.engines[0])
            running_ = asyncio.create_task(live.ask(prompt="hi", model="one"))
            await gate.advance(lambda: one.engines[0].counts["running"] == 1)
            status, error = await live.ask(prompt="hi", model="two")
            assert status == 503
            assert "requests use 'one'" in error["error"]["message"]
            status, error = await live.ask("/models/unload", model="one")
            assert (status, error["error"]["code"]) == (409, "model_in_use")
            gate.open()
            assert (await running_)[0] == 200
            assert await live.say("two") == "two"
            assert live.state("one") == "unloaded"

    scenario(body)


def test_a_model_larger_than_the_memory_is_refused_with_both_sizes():
    async def body():
        one, two = pair()
        one.memory = 2 * 10**9
        async with serving(one, two, dialects=everyone(), memory=10**9) as live:
            status, error = await live.ask(prompt="hi", model="one")
            assert status == 503
            assert "2.00 GB" in error["error"]["message"] and "1.00 GB" in error["error"]["message"]
            assert not one.loads
            assert await live.say("two") == "two"

    scenario(body)


def test_a_model_that_fails_is_told_with_its_reason_and_loaded_at_the_next_request():
    async def body():
        one, two = pair()
        one.failure = CheckpointError("the file is cut off")
        async with serving(one, two, dialects=everyone()) as live:
            status, error = await live.ask(prompt="hi", model="one")
            assert (status, error["error"]["code"]) == (503, "model_failed")
            assert "the file is cut off" in error["error"]["message"]
            cards = (await live.get("/v1/models"))["data"]
            assert (cards[0]["state"], cards[0]["reason"]) == ("failed", "the file is cut off")
            assert await live.say("two") == "two"
            assert (await live.get("/health"))["status"] == "ready"
            one.failure = None
            assert await live.say("one") == "one"
            assert "reason" not in (await live.get("/v1/models"))["data"][0]

    scenario(body)


def test_an_idle_model_is_unloaded_after_its_time_and_loaded_again():
    async def body():
        one, two = pair(keep_alive=0.0)
        async with serving(one, two, dialects=everyone()) as live:
            assert await live.say("one") == "one"
            await live.until(lambda: live.state("one") == "unloaded")
            assert await live.say("one") == "one"
            assert one.loads == 2

    scenario(body)


def test_a_model_in_use_does_not_run_out_of_time():
    async def body():
        one = ScriptedPlan("one", ENDLESS, more={"keep_alive": 0.0})
        async with serving(one, dialects=everyone()) as live:
            asked = {"model": "one", "prompt": "hi", "stream": True, "max_tokens": 500}
            async with live.models.lease("one"):  # until there is a gate
                gate = Gate(one.engines[0])
                answer = asyncio.create_task(live.ask(**asked))
                await gate.advance(lambda: one.engines[0].counts["running"] == 1)
            await gate.advance(lambda: gate.steps > 5)
            assert live.state("one") == "loaded"
            gate.open()
            assert (await answer)[0] == 200
            await live.until(lambda: live.state("one") == "unloaded")

    scenario(body)


def test_ollamas_keep_alive_unloads_a_model_or_keeps_it():
    async def body():
        async with serving(*pair(), dialects=everyone()) as live:
            asked = {"prompt": "hi", "stream": False}
            status, _ = await live.ask("/api/generate", model="one", keep_alive="30s", **asked)
            assert status == 200
            (shown,) = (await live.get("/api/ps"))["models"]
            assert shown["name"] == "one:latest" and not shown["expires_at"].startswith("2318")
            await live.ask("/api/generate", model="one", keep_alive=-1, **asked)
            (shown,) = (await live.get("/api/ps"))["models"]
            assert shown["expires_at"].startswith("2318")
            _, found = await live.ask("/api/generate", model="one", keep_alive=0)
            assert found["done_reason"] == "unload"
            await live.until(lambda: live.state("one") == "unloaded")
            assert (await live.get("/api/ps"))["models"] == []
            assert [each["name"] for each in (await live.get("/api/tags"))["models"]] == [
                "one:latest",
                "two:latest",
            ]

    scenario(body)


def test_models_are_loaded_and_unloaded_by_name():
    async def body():
        one, two = pair()
        async with serving(one, two, dialects=everyone()) as live:
            status, found = await live.ask("/models/load", model="one")
            assert (status, found["state"]) == (200, "loaded")
            two.gate.clear()
            status, found = await live.ask("/models/load", model="two", wait=False)
            assert (status, found["state"]) == (200, "loading")
            status, error = await live.ask("/models/unload", model="two")
            assert (status, error["error"]["code"]) == (409, "model_in_use")
            two.gate.set()
            await live.until(lambda: live.state("two") == "loaded")
            for _ in range(2):
                status, found = await live.ask("/models/unload", model="one")
                assert (status, found["state"]) == (200, "unloaded")
            assert (await live.ask("/models/unload", model="three"))[0] == 404
            assert await live.say("one") == "one"

    scenario(body)


@pytest.mark.parametrize("path", ["/models/load", "/models/unload"])
def test_a_server_of_one_model_neither_loads_nor_unloads(path):
    async def body():
        async with (
            running(dialects=everyone()) as live,
            live.http.post(f"{live.url}{path}", json={"model": "scripted"}) as response,
        ):
            assert response.status == 400
            assert "--models-file" in await response.text()

    scenario(body)


def test_models_to_preload_are_loaded_before_the_server_is_ready():
    async def body():
        one, two = pair(is_preloaded=True)
        two.failure = CheckpointError("the file is cut off")
        one.gate.clear()
        async with serving(one, two, dialects=everyone()) as live:
            await live.until(lambda: one.loads == 1)
            async with live.http.get(f"{live.url}/ready") as response:
                assert response.status == 503
            one.gate.set()
            await live.models.ready.wait()
            assert (await live.get("/ready"))["status"] == "ready"
            assert [live.state(name) for name in ("one", "two")] == ["loaded", "failed"]

    scenario(body)


def test_metrics_name_the_model():
    async def body():
        async with serving(*pair(), dialects=everyone()) as live:
            await live.say("two")
            async with live.http.get(f"{live.url}/metrics") as response:
                lines = (await response.text()).splitlines()
            assert 'jaxllama_model_loaded{model="one"} 0.0' in lines
            assert 'jaxllama_model_loaded{model="two"} 1.0' in lines
            assert any(
                line.startswith('jaxllama_requests_total{model="two",reason=') for line in lines
            )
            families = [line for line in lines if line.startswith("# TYPE")]
            assert len(families) == len(set(families))

    scenario(body)


def test_what_does_not_need_a_model_loads_none():
    async def body():
        scripts = pair()
        async with serving(*scripts, dialects=everyone()) as live:
            for path in ("/health", "/ready", "/v1/models", "/v1/models/two", "/api/tags"):
                await live.get(path)
            status, _ = await live.ask("/api/show", model="two")
            assert status == 200
            async with live.http.get(f"{live.url}/slots?model=two") as response:
                assert response.status == 503
                assert "'two' is unloaded" in await response.text()
            assert not any(each.loads for each in scripts)
            await live.say("two")
            assert len(await live.get("/slots?model=two")) == 4

    scenario(body)


def test_a_body_that_is_no_json_loads_nothing():
    async def body():
        scripts = pair()
        async with serving(*scripts, dialects=everyone()) as live:
            headers = {"Content-Type": "application/json"}
            async with live.http.post(
                f"{live.url}/v1/completions", data=b'{"model": "one"', headers=headers
            ) as response:
                assert response.status == 400
            assert not any(each.loads for each in scripts)

    scenario(body)


def test_draining_finishes_the_answers_of_all_models_and_refuses_those_who_wait():
    async def body():
        scripts = [ScriptedPlan(name, ENDLESS) for name in ("one", "two")]
        late = ScriptedPlan("late")
        late.gate.clear()
        async with serving(*scripts, late, dialects=everyone(), drain_timeout=30.0) as live:
            asked = []
            for each in scripts:
                await live.ask("/models/load", model=each.name)
                gate = Gate(each.engines[0])
                asked.append(asyncio.create_task(live.ask(prompt="hi", model=each.name)))
                await gate.advance(lambda each=each: each.engines[0].counts["running"] == 1)
            waiting = asyncio.create_task(live.ask(prompt="hi", model="late"))
            await live.until(lambda: late.loads == 1)
            stopping = asyncio.create_task(live.models.drain(30.0))
            status, error = await waiting
            assert (status, error["error"]["code"]) == (503, "not_ready")
            for each in scripts:
                each.engines[0].step.gate.open()
            assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]
            await stopping
            late.gate.set()
            await live.models.find("late").service.ready.wait()

    scenario(body)


def test_a_model_whose_engine_dies_is_unloaded_and_loaded_again():
    async def body():
        one, two = pair()
        async with serving(one, two, dialects=everyone()) as live:
            await live.say("one")
            live.models.find("one").service.failed.set()
            await live.until(lambda: live.state("one") == "failed")
            assert await live.say("two") == "two"
            assert await live.say("one") == "one"

    scenario(body)


def test_an_unloaded_model_is_described_in_the_list_when_it_has_been_measured():
    async def body():
        async with serving(*pair(keep_alive=0.0), dialects=everyone()) as live:
            assert "context_length" not in (await live.get("/v1/models/one"))
            await live.say("one")
            await live.until(lambda: live.state("one") == "unloaded")
            found = await live.get("/v1/models/one")
            assert (found["state"], found["context_length"]) == ("unloaded", 1024)

    scenario(body)


def test_two_models_of_one_name_are_refused():
    async def body():
        one, two = pair()
        two.more["aliases"] = frozenset({"one"})
        plans = [each.plan(None) for each in (one, two)]
        with pytest.raises(ConfigError, match="'one'"):
            ServedModels(plans, ModelRules(10**9, 1.0))

    scenario(body)


def test_lines_of_a_batch_ask_the_models_that_they_name():
    async def body():
        async with serving(*pair(), dialects=everyone()) as live:
            lines = [
                f'{{"custom_id": "{name}", "method": "POST", "url": "/v1/completions", '
                f'"body": {{"model": "{name}", "prompt": "hi"}}}}'
                for name in ("two", "one")
            ]
            form = aiohttp.FormData({"purpose": "batch"})
            form.add_field("file", "\n".join(lines).encode(), filename="lines.jsonl")
            async with live.http.post(f"{live.url}/v1/files", data=form) as response:
                file = (await response.json())["id"]
            _, batch = await live.ask(
                "/v1/batches",
                input_file_id=file,
                endpoint="/v1/completions",
                completion_window="24h",
            )
            while batch["status"] != "completed":
                batch = await live.get(f"/v1/batches/{batch['id']}")
            async with live.http.get(
                f"{live.url}/v1/files/{batch['output_file_id']}/content"
            ) as response:
                found = [read(line) for line in (await response.text()).splitlines()]
            texts = {
                each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in found
            }
            assert texts == {"one": "one", "two": "two"}

    scenario(body)
