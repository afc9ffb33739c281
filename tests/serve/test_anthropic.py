"""The Anthropic dialect: messages and events as Anthropic writes them."""

import json

import pytest

from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import config, events_of, running, scenario
from tests.serve.dialects import HI, everyone
from tests.support import installed_samplers

CALL = b'Well. <tool_call>{"name": "look", "arguments": {"town": "Linz"}}</tool_call>'
LOOK = {"name": "look", "description": "Look out.", "input_schema": {"type": "object"}}
ASKED = {"model": "scripted", "max_tokens": 200, "messages": HI}
EVENTS = b"""event: message_start
data: {"message":{"id":"msg_ID","model":"scripted","content":[],"stop_reason":null,\
"stop_sequence":null,"usage":{"input_tokens":N,"output_tokens":0,\
"cache_creation_input_tokens":0,"cache_read_input_tokens":0},"type":"message",\
"role":"assistant"},"type":"message_start"}

event: content_block_start
data: {"index":0,"content_block":{"type":"text","text":""},"type":"content_block_start"}

event: content_block_delta
data: {"index":0,"delta":{"type":"text_delta","text":"H"},"type":"content_block_delta"}

event: content_block_delta
data: {"index":0,"delta":{"type":"text_delta","text":"i"},"type":"content_block_delta"}

event: content_block_stop
data: {"index":0,"type":"content_block_stop"}

event: message_delta
data: {"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":N,\
"output_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":0},\
"type":"message_delta"}

event: message_stop
data: {"type":"message_stop"}

"""


def serving(answer=b"Hello!", **more):
    script = answer if callable(answer) else (lambda _: answer)
    size = config(candidates=32, context=1024)
    engine = ScriptedEngine(script, config=size, samplers=installed_samplers())
    return running(engine, dialects=everyone(), **more)


async def post(live, status=200, path="/v1/messages", **more):
    async with live.http.post(f"{live.url}{path}", json=ASKED | more) as response:
        assert response.status == status, await response.text()
        return await response.json()


def test_the_events_of_a_stream_byte_for_byte():
    async def body():
        async with (
            serving(b"Hi") as live,
            live.http.post(f"{live.url}/v1/messages", json=ASKED | {"stream": True}) as response,
        ):
            raw = await response.read()
            id_ = response.headers["X-Request-Id"].encode()
            count = len(live.service.model.intake.chat_ids(HI))
            expected = EVENTS.replace(b"ID", id_).replace(b"N", str(count).encode())
            assert raw == expected

    scenario(body)


def test_calls_of_tools_are_blocks_and_their_results_go_back():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
            return CALL

        async with serving(script) as live:
            whole = await post(live, tools=[LOOK])
            assert whole["stop_reason"] == "tool_use"
            text, call = whole["content"]
            assert text == {"text": "Well.", "type": "text"}
            assert (call["type"], call["name"], call["input"]) == (
                "tool_use",
                "look",
                {"town": "Linz"},
            )
            body = ASKED | {"tools": [LOOK], "stream": True}
            async with live.http.post(f"{live.url}/v1/messages", json=body) as response:
                events = events_of(await response.text())
            kinds = [event["type"] for event in events]
            assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
            given = [
                e["delta"]["partial_json"] for e in events if "partial_json" in e.get("delta", ())
            ]
            assert json.loads("".join(given)) == {"town": "Linz"}
            result = {
                "type": "tool_result",
                "tool_use_id": call["id"],
                "content": "No.",
                "is_error": True,
            }
            told = [*HI, {"role": "assistant", "content": [text, call]}]
            told += [{"role": "user", "content": [result, {"type": "text", "text": "And now?"}]}]
            await post(live, tools=[LOOK], messages=told)
            assert "Error: No." in prompts[-1] and "And now?" in prompts[-1]
            assert prompts[-1].index("Error: No.") < prompts[-1].index("And now?")

    scenario(body)


@pytest.mark.parametrize(
    ("choice", "calls"),
    [({"type": "any"}, True), ({"type": "tool", "name": "look"}, True), ({"type": "none"}, False)],
)
def test_a_tool_choice_forces_a_call_or_forbids_it(choice, calls):
    async def body():
        async with serving(b"Hello!") as live:
            found = await post(live, tools=[LOOK], tool_choice=choice)
            assert (found["stop_reason"] in ("tool_use", "max_tokens")) == calls
            wrong = await post(live, 400, tools=[LOOK], tool_choice={"type": "tool"})
            assert "tool_choice.name" in wrong["error"]["message"]

    scenario(body)


def test_the_reason_of_the_end_is_told_with_the_stop_sequence():
    async def body():
        async with serving(b"one two three") as live:
            found = await post(live, stop_sequences=["two"])
            assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "two")
            assert found["content"][0]["text"] == "one "
            assert (await post(live, max_tokens=3))["stop_reason"] == "max_tokens"
            assert (await post(live))["stop_reason"] == "end_turn"
        async with serving(b"x" * 2000) as live:
            found = await post(live, max_tokens=100_000)
            assert found["stop_reason"] == "model_context_window_exceeded"
            usage = found["usage"]
            assert usage["input_tokens"] + usage["output_tokens"] == 1024

    scenario(body)


def test_an_assistants_message_at_the_end_is_continued_and_the_system_prompt_comes_first():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
            return b"."

        async with serving(script) as live:
            begun = [*HI, {"role": "assistant", "content": "I say"}]
            system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
            await post(live, messages=begun, system=system)
            assert prompts[-1].endswith("I say")
            assert prompts[-1].index("Be brief.") < prompts[-1].index("hi")

    scenario(body)


def test_tokens_are_counted_and_those_of_the_cache_apart():
    async def body():
        async with serving() as live:
            counted = {key: value for key, value in ASKED.items() if key != "max_tokens"}
            url = f"{live.url}/v1/messages/count_tokens"
            async with live.http.post(url, json=counted) as response:
                count = (await response.json())["input_tokens"]
            first, second = [(await post(live))["usage"] for _ in range(2)]
            assert (first["input_tokens"], first["cache_read_input_tokens"]) == (count, 0)
            assert second["cache_read_input_tokens"] > 0
            assert second["input_tokens"] + second["cache_read_input_tokens"] == count

    scenario(body)


def test_metadata_may_name_a_user_of_at_most_512_characters():
    async def body():
        async with serving() as live:
            await post(live, metadata={"user_id": "u" * 512})
            error = await post(live, status=400, metadata={"user_id": "u" * 513})
            assert "user_id" in error["error"]["message"]

    scenario(body)


def test_an_output_format_holds_the_answer_to_its_schema():
    async def body():
        schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}
        form = {"type": "json_schema", "schema": schema | {"additionalProperties": False}}
        async with serving() as live:
            found = await post(live, output_config={"format": form})
            assert json.loads(found["content"][0]["text"]) == {"a": 7}
            wrong = await post(
                live, 400, output_config={"format": form}, tools=[LOOK], tool_choice={"type": "any"}
            )
            assert "output_config.format" in wrong["error"]["message"]

    scenario(body)


def test_what_has_no_effect_is_named_and_refused_if_strict():
    async def body():
        body = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
        async with serving() as live:
            asked = ASKED | body
            async with live.http.post(f"{live.url}/v1/messages", json=asked) as response:
                assert response.status == 200
                assert response.headers["X-Ignored-Fields"] == "thinking, output_config.effort"
        async with serving(strict=True) as live:
            for name, value in body.items():
                assert name in (await post(live, 400, **{name: value}))["error"]["message"]

    scenario(body)


@pytest.mark.parametrize(
    ("more", "status", "kind", "words"),
    [
        ({"model": "claude"}, 404, "not_found_error", "'claude' does not exist here"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens is 0"),
        ({"mcp_servers": [{}]}, 400, "invalid_request_error", "mcp_servers is not supported"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            400,
            "invalid_request_error",
            "runs no tools itself",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "invalid_request_error",
            "messages[0].content[0] is an image",
        ),
    ],
)
def test_errors_have_anthropics_types(more, status, kind, words):
    async def body():
        async with serving() as live:
            error = await post(live, status, **more)
            assert error["type"] == "error"
            assert error["error"]["type"] == kind
            assert words in error["error"]["message"]

    scenario(body)
