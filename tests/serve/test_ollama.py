"""The Ollama dialect: lines, counts, calls and facts in Ollama's form."""

import pytest

from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import config, running, scenario
from tests.serve.dialects import HI, everyone, lines
from tests.support import installed_samplers

MODEL = "scripted"
CALL = b'<tool_call>{"name": "look", "arguments": {"town": "Linz"}}</tool_call>'
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def serving(answer: bytes = b"Hello!", **more):
    size = config(candidates=32, context=1024)
    engine = ScriptedEngine(lambda _: answer, config=size, samplers=installed_samplers())
    return running(engine, dialects=everyone(), **more)


async def post(live, path, body, status=200, **more):
    async with live.http.post(f"{live.url}{path}", json=body, **more) as response:
        assert response.status == status, await response.text()
        return await response.json(content_type=None)


def test_a_stream_ends_with_the_reason_the_counts_and_the_durations():
    async def body():
        async with serving() as live:
            asked = {"model": MODEL, "prompt": "hi", "options": {"num_predict": 3, "seed": -1}}
            async with live.http.post(f"{live.url}/api/generate", json=asked) as response:
                assert response.headers["Content-Type"] == "application/x-ndjson"
                found = lines(await response.text())
            assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
            assert all(
                set(line) == {"model", "created_at", "response", "done"} for line in found[:-1]
            )
            last = found[-1]
            assert (last["response"], last["done_reason"], last["eval_count"]) == ("", "length", 3)
            assert last["prompt_eval_count"] > 0
            assert last["total_duration"] >= last["eval_duration"] > 0
            assert last["context"][-3:] == list(b"Hel")

    scenario(body)


def test_an_answer_continues_the_context_of_the_one_before():
    async def body():
        async with serving() as live:
            asked = {"model": MODEL, "prompt": "hi", "stream": False}
            first = await post(live, "/api/generate", asked)
            second = await post(live, "/api/generate", asked | {"context": first["context"]})
            assert second["context"][: len(first["context"])] == first["context"]
            assert second["prompt_eval_count"] == len(first["context"]) + first["prompt_eval_count"]
            raw = await post(live, "/api/generate", asked | {"raw": True})
            assert raw["prompt_eval_count"] == 2 and "context" not in raw

    scenario(body)


def test_tool_calls_come_whole_with_arguments_as_an_object():
    async def body():
        async with serving(CALL) as live:
            asked = {"model": MODEL, "messages": HI, "tools": [LOOK]}
            whole = await post(live, "/api/chat", asked | {"stream": False})
            (call,) = whole["message"]["tool_calls"]
            assert call["function"] == {"index": 0, "name": "look", "arguments": {"town": "Linz"}}
            async with live.http.post(f"{live.url}/api/chat", json=asked) as response:
                found = lines(await response.text())
            calls = [
                line["message"]["tool_calls"] for line in found if "tool_calls" in line["message"]
            ]
            assert [each["function"] for (each,) in calls] == [call["function"]]
            turn = whole["message"]
            result = {"role": "tool", "tool_name": "look", "content": "Sunny."}
            told = [*HI, turn, result]
            await post(live, "/api/chat", asked | {"messages": told, "stream": False})

    scenario(body)


def test_format_holds_the_answer_to_json():
    async def body():
        async with serving() as live:
            asked = {"model": MODEL, "messages": HI, "stream": False, "options": {"num_predict": 8}}
            found = await post(live, "/api/chat", asked | {"format": "json"})
            assert found["message"]["content"].startswith("{")
            wrong = await post(live, "/api/chat", asked | {"format": {"type": 5}}, 400)
            assert "format" in wrong["error"]

    scenario(body)


def test_log_probabilities_have_a_token_each():
    async def body():
        async with serving(b"ab") as live:
            asked = {"model": MODEL, "messages": HI, "stream": False}
            found = await post(live, "/api/chat", asked | {"logprobs": True, "top_logprobs": 1})
            assert [one["token"] for one in found["logprobs"]][:2] == ["a", "b"]
            assert len(found["logprobs"][0]["top_logprobs"]) == 1
            wrong = await post(live, "/api/chat", asked | {"top_logprobs": 1}, 400)
            assert "top_logprobs" in wrong["error"]

    scenario(body)


def test_options_without_effect_are_named_and_refused_if_strict():
    async def body():
        asked = {"model": MODEL, "prompt": "hi", "stream": False, "keep_alive": "5m"}
        asked["options"] = {"num_ctx": 4096, "typo": 1, "num_predict": 4}
        async with (
            serving() as live,
            live.http.post(f"{live.url}/api/generate", json=asked) as response,
        ):
            assert response.status == 200
            names = response.headers["X-Ignored-Fields"].split(", ")
            assert sorted(names) == ["keep_alive", "options.num_ctx", "options.typo"]
        async with serving(strict=True) as live:
            for option in ("num_ctx", "typo"):
                own = {**asked, "options": {option: 1}, "keep_alive": -1}
                wrong = await post(live, "/api/generate", own, 400)
                assert option in wrong["error"]
            forever = {**asked, "options": {}, "keep_alive": "-1m"}
            assert (await post(live, "/api/generate", forever))["done"]

    scenario(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [("images", ["aGk="]), ("suffix", "x"), ("template", "{{ .Prompt }}"), ("think", True)],
)
def test_what_this_server_cannot_do_is_refused(field, value):
    async def body():
        async with serving() as live:
            asked = {"model": MODEL, "prompt": "hi", field: value}
            assert field in (await post(live, "/api/generate", asked, 400))["error"]

    scenario(body)


def test_without_a_prompt_the_model_is_loaded():
    async def body():
        async with serving() as live:
            for path in ("/api/generate", "/api/chat"):
                found = await post(live, path, {"model": MODEL, "keep_alive": -1})
                assert (found["done"], found["done_reason"]) == (True, "load")

    scenario(body)


def test_curl_without_a_content_type_is_served_and_a_web_page_is_not():
    async def body():
        async with serving() as live:
            asked = {"data": '{"model": "scripted", "prompt": "hi"}'}
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            page = form | {"Origin": "https://evil.example"}
            url = f"{live.url}/api/generate"
            async with live.http.post(url, headers=form, **asked) as response:
                assert response.status == 200
            async with live.http.post(url, headers=page, **asked) as response:
                assert response.status == 415

    scenario(body)


def test_the_served_model_is_listed_shown_loaded_and_here():
    async def body():
        async with serving() as live:

            async def fetch(path):
                async with live.http.get(f"{live.url}{path}") as response:
                    return await response.json()

            (tag,) = (await fetch("/api/tags"))["models"]
            (one,) = (await fetch("/api/ps"))["models"]
            assert tag["name"] == one["name"] == "scripted:latest"
            assert one["context_length"] == 1024
            assert (await fetch("/api/version"))["version"]
            shown = await post(live, "/api/show", {"model": tag["name"]})
            assert shown["model_info"]["llama.context_length"] == 1024
            assert "tools" in shown["capabilities"]
            async with live.http.post(f"{live.url}/api/pull", json={"model": MODEL}) as response:
                assert lines(await response.text())[-1] == {"status": "success"}
            for path in ("/api/show", "/api/pull", "/api/generate"):
                wrong = await post(live, path, {"model": "llama3.2"}, 404)
                assert wrong["error"].startswith("model 'llama3.2' not found")

    scenario(body)


def test_texts_become_vectors():
    async def body():
        async with serving() as live:
            asked = {"model": MODEL, "input": ["one", "two " * 2000]}
            found = await post(live, "/api/embed", asked)
            assert len(found["embeddings"]) == 2 and found["prompt_eval_count"] > 3
            old = await post(live, "/api/embeddings", {"model": MODEL, "prompt": "one"})
            assert old["embedding"] == found["embeddings"][0]
            assert (await post(live, "/api/embed", {"model": MODEL}))["embeddings"] == []
            wrong = await post(live, "/api/embed", asked | {"truncate": False}, 400)
            assert "context" in wrong["error"]
            wrong = await post(live, "/api/embed", asked | {"dimensions": 2}, 400)
            assert "dimensions" in wrong["error"]

    scenario(body)


def test_the_root_is_given_away_if_the_operator_says_so():
    async def body():
        async with serving(root_dialect="ollama") as live:
            async with live.http.get(live.url) as response:
                assert await response.text() == "Ollama is running"
            assert await live.status("/page/chat") == 200

    scenario(body)
