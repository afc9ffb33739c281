"""Chats, driven by OpenAI's own client."""

import asyncio
import json
import math
import re
from random import Random

import openai
import pytest

from jaxllama.intake import Intake
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.plain import Plain
from tests.serve.clients import HI, MODEL, asked, client_of, post, saying
from tests.serve.conftest import config, events_of, scenario
from tests.support import installed_samplers

CALL = b'<tool_call>\n{"name": "look", "arguments": {"town": "Linz", "n": [1, 2]}}\n</tool_call>'
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks out of the window.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}

NO_SCALE = {"guidance_scale": None}


def ask(client, **more):
    return client.chat.completions.create(**{"model": MODEL, "messages": HI} | more)


async def joined(stream):
    """Content, calls and endings of a stream, per choice, and its usage."""
    texts, calls, ends, usage = {}, {}, {}, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in ends, "a chunk after the end of its choice"
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            for call in choice.delta.tool_calls or ():
                place = (choice.index, call.index)
                if call.id:
                    calls[place] = [call.id, call.function.name, ""]
                calls[place][2] += call.function.arguments
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    return texts, calls, ends, usage


def test_an_answer_has_text_an_ending_and_its_cost():
    async def body():
        async with asked() as (_, client):
            answer = await ask(client)
            (choice,) = answer.choices
            assert (choice.message.role, choice.message.content) == ("assistant", "Hello!")
            assert choice.finish_reason == "stop"
            assert answer.model == MODEL
            assert answer.usage.completion_tokens == 7  # the end token was sampled, too
            assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7

    scenario(body)


def test_a_stream_says_what_the_whole_answer_says():
    async def body():
        async with asked(saying("Ein € und 🙂!".encode())) as (_, client):
            whole = await ask(client, n=3)
            stream = await ask(client, n=3, stream=True, stream_options={"include_usage": True})
            texts, _, ends, usage = await joined(stream)
            assert texts == {one.index: one.message.content for one in whole.choices}
            assert texts[2] == "Ein € und 🙂!"
            assert ends == dict.fromkeys(range(3), "stop")
            assert usage.completion_tokens == whole.usage.completion_tokens

    scenario(body)


def test_a_stream_begins_with_the_role_and_ends_with_done():
    async def body():
        async with asked() as (live, _):
            async with live.http.post(
                f"{live.url}/v1/chat/completions", json={"messages": HI, "stream": True}
            ) as response:
                events = events_of(await response.text())
            first, *_, last, done = events
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert last["choices"] == [
                {
                    "index": 0,
                    "delta": {},
                    "finish_reason": "stop",
                    "logprobs": None,
                    "stop_reason": None,
                }
            ]
            assert done == "[DONE]"
            assert all("usage" not in event for event in events[:-1])
            assert len({event["id"] for event in events[:-1]}) == 1

    scenario(body)


def test_stop_texts_are_never_told():
    async def body():
        async with asked(saying(b"one STOP two")) as (_, client):
            assert (await ask(client, stop="STOP")).choices[0].message.content == "one "
            texts, _, ends, _ = await joined(await ask(client, stop=["x", "STOP"], stream=True))
            assert (texts, ends) == ({0: "one "}, {0: "stop"})

    scenario(body)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_budget_ends_with_length(name):
    async def body():
        async with asked() as (_, client):
            choice = (await ask(client, **{name: 3})).choices[0]
            assert (choice.message.content, choice.finish_reason) == ("Hel", "length")

    scenario(body)


def test_logprobs_name_tokens_bytes_and_alternatives():
    async def body():
        async with asked(saying("é".encode())) as (_, client):
            answer = await ask(client, logprobs=True, top_logprobs=2)
            entries = answer.choices[0].logprobs.content
            assert [entry.bytes for entry in entries] == [[0xC3], [0xA9]]
            assert entries[0].token == "\ufffd"
            assert entries[0].logprob == pytest.approx(-math.log(2))
            assert [one.bytes for one in entries[0].top_logprobs] == [[0xC3], [0xC4]]
            assert entries[0].sampled_logprob == pytest.approx(-math.log(2))
            streamed = []
            async for chunk in await ask(client, logprobs=True, top_logprobs=2, stream=True):
                found = chunk.choices[0].logprobs
                streamed += found.content if found else []
            assert streamed == entries
            assert (await ask(client, logprobs=True)).choices[0].logprobs.content[
                0
            ].top_logprobs == []
            assert (await ask(client)).choices[0].logprobs is None

    scenario(body)


def test_logprobs_mark_control_tokens():
    async def body():
        async with asked(saying(b"\xff")) as (_, client):
            answer = await ask(client, logprobs=True, top_logprobs=2)
            (entry,) = answer.choices[0].logprobs.content
            assert "control" not in entry.model_extra
            own, begin = entry.top_logprobs  # the byte, and the token after it: <s>
            assert "control" not in own.model_extra
            assert (begin.token, begin.model_extra) == ("<s>", {"control": True})

    scenario(body)


def test_every_knob_of_every_sampler_is_a_field():
    async def body():
        samplers = installed_samplers()
        engine = ScriptedEngine(lambda _: b"ok", config=config(candidates=32), samplers=samplers)
        async with asked(engine) as (_, client):
            answer = await ask(
                client,
                temperature=0.7,
                top_p=0.9,
                frequency_penalty=0.5,
                presence_penalty=-0.5,
                logit_bias={"97": -100},
                seed=7,
                extra_body={"top_k": 40, "min_p": 0.05, "ignore_eos": False},
            )
            assert answer.choices[0].message.content == "ok"
            with pytest.raises(openai.BadRequestError, match=r"top_k is -1") as caught:
                await ask(client, extra_body={"top_k": -1})
            assert caught.value.param == "top_k"
            found = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=HI, extra_body={"topk": 1}
            )
            assert found.headers["X-Ignored-Fields"] == "topk"
        async with asked(strict=True) as (_, client):
            with pytest.raises(openai.BadRequestError, match="did you mean 'seed'"):
                await ask(client, extra_body={"sede": 1})

    scenario(body)


def test_a_negative_prompt_is_another_system_message_in_a_second_slot():
    shown = []

    def script(prompt):
        shown.append(bytes(token for token in prompt if token < 256).decode())
        return b"ok"

    async def body():
        async with asked(ScriptedEngine(script, config=config())) as (live, client):
            more = {"guidance_scale": 1.5, "negative_prompt": "be dull"}
            answer = await ask(client, n=3, extra_body=more)
            assert [one.message.content for one in answer.choices] == ["ok"] * 3
            assert sum("be dull" in prompt for prompt in shown) == 3
            error = await post(
                live, "/v1/chat/completions", {"messages": HI, **more} | NO_SCALE, 400
            )
            assert error["error"]["param"] == "negative_prompt"

    scenario(body)


def test_tools_are_shown_called_and_told():
    async def body():
        async with asked(saying(b"Let me see.\n" + CALL, context=1024)) as (_, client):
            answer = await ask(client, tools=[LOOK], tool_choice="auto")
            (choice,) = answer.choices
            (call,) = choice.message.tool_calls
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content == "Let me see."
            assert call.function.name == "look"
            assert json.loads(call.function.arguments) == {"town": "Linz", "n": [1, 2]}
            stream = await ask(client, tools=[LOOK], stream=True)
            texts, calls, ends, _ = await joined(stream)
            assert texts == {0: "Let me see."}
            assert calls[0, 0][1:] == ["look", call.function.arguments]
            assert ends == {0: "tool_calls"}

    scenario(body)


def test_a_call_and_its_result_are_sent_back():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
            return CALL

        async with asked(ScriptedEngine(script, config=config(context=2048))) as (_, client):
            answer = (await ask(client, tools=[LOOK])).choices[0].message
            result = {
                "role": "tool",
                "tool_call_id": answer.tool_calls[0].id,
                "content": "It rains.",
            }
            await ask(client, tools=[LOOK], messages=[*HI, answer, result])
            assert '{"type": "function", "function": {"name": "look"' in prompts[-1]
            assert '{"name": "look", "arguments": {"town": "Linz", "n": [1, 2]}}' in prompts[-1]
            assert "<tool_response>\nIt rains.\n</tool_response>" in prompts[-1]

    scenario(body)


def test_without_tools_a_call_is_text():
    async def body():
        async with asked(saying(CALL)) as (_, client):
            for more in ({}, {"tools": [LOOK], "tool_choice": "none"}):
                message = (await ask(client, **more)).choices[0].message
                assert message.content == CALL.decode()
                assert message.tool_calls is None

    scenario(body)


def test_one_call_only_where_that_is_asked():
    async def body():
        async with asked(saying(CALL + CALL, context=1024)) as (_, client):
            for parallel, count in ((True, 2), (False, 1)):
                answer = await ask(client, tools=[LOOK], parallel_tool_calls=parallel)
                assert len(answer.choices[0].message.tool_calls) == count

    scenario(body)


def test_a_format_without_tools_refuses_them():
    async def body():
        engine = saying(b"x")
        intake = Intake(ByteTokenizer(), Plain(), engine.bank, engine.config)
        async with asked(engine, intake=intake) as (_, client):
            with pytest.raises(openai.BadRequestError, match="'plain' of this model knows none"):
                await ask(client, tools=[LOOK])

    scenario(body)


def test_developers_speak_as_the_system_and_parts_are_joined():
    async def body():
        async with asked() as (live, _):
            parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
            messages = [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": parts},
            ]
            found = await post(live, "/apply-template", {"messages": messages})
            assert found["prompt"] == (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
                "<|im_start|>assistant\n"
            )

    scenario(body)


def test_the_last_message_goes_on_where_it_ended():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
            return b" is blue."

        async with asked(ScriptedEngine(script, config=config())) as (_, client):
            messages = [*HI, {"role": "assistant", "content": "The sky"}]
            answer = await ask(
                client,
                messages=messages,
                extra_body={"continue_final_message": True, "add_generation_prompt": False},
            )
            assert prompts[-1].endswith("assistant\nThe sky")
            assert answer.choices[0].message.content == " is blue."

    scenario(body)


REFUSED = [
    ({"messages": []}, "messages", "messages is empty"),
    ({"temperature": -1}, "temperature", r"temperature is -1; it must lie in \[0.0, 100.0\]"),
    ({"temperature": "hot"}, "temperature", "expected a number"),
    ({"n": 0}, "n", r"n is 0; it must lie in \[1, 16\]"),
    ({"n": 2**63}, "n", "it must lie in"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs is 21"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"stop": ["x"] * 17}, "stop", "17 entries; at most 16"),
    ({"stop": [""]}, "stop", "non-empty"),
    ({"user": "x" * 513}, "user", "513 characters; at most 512"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "17 entries"),
    ({"store": True}, "store", "nothing is stored here"),
    ({"audio": {"voice": "x"}}, "audio", "text only"),
    ({"functions": [{}]}, "functions", "send tools instead"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "does not think"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "is missing",
    ),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "'yaml'"),
    ({"tool_choice": "required"}, "tool_choice", "tools has no such tool"),
    (
        {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice",
        "tool_choice is 'f'",
    ),
    ({"tools": [LOOK] * 129}, "tools", "129 entries"),
    ({"tools": [{"type": "web"}]}, "tools[0].type", "'web'"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "'king'"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "Expected"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "content None"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0]",
        "reads text only",
    ),
    ({"messages": HI * 2049}, "messages", "2049 entries; at most 2048"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, None, "prompt has 3.. tokens"),
    ({"chat_template": "{{ 1 }}"}, "chat_template", "unknown parameter"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "choose one",
    ),
]


def test_what_is_wrong_is_named_with_its_bound():
    async def body():
        async with asked(strict=True) as (live, _):
            for fields, param, words in REFUSED:
                sent = {"messages": HI, **fields}
                error = (await post(live, "/v1/chat/completions", sent, 400))["error"]
                assert error["type"] == "invalid_request_error"
                assert error["param"] == param, (fields, error)
                assert re.search(words, error["message"]), error
            assert live.engine.ledger["accepted"] == 1  # the token that proves the engine

    scenario(body)


def test_harmless_fields_are_welcome():
    async def body():
        async with asked() as (_, client):
            answer = await ask(
                client,
                user="me",
                metadata={"a": "b"},
                store=False,
                safety_identifier="x",
                prompt_cache_key="y",
                service_tier="auto",
                modalities=["text"],
                response_format={"type": "text"},
                parallel_tool_calls=True,
                tool_choice="none",
            )
            assert answer.choices[0].message.content == "Hello!"

    scenario(body)


# What clients send that are not OpenAI's own, as recorded from them.
SENT_BY = {
    "open-webui": {
        "stream": False,
        "chat_id": "c",
        "session_id": "s",
        "id": "i",
        "features": {"web_search": False},
        "files": [],
        "options": {"num_ctx": 2048},
        "keep_alive": "5m",
        "params": {},
        "variables": {},
        "background_tasks": {},
        "tool_servers": [],
        "model_item": {"id": "m"},
    },
    "llama.cpp": {
        "repeat_penalty": 1.0,
        "cache_prompt": True,
        "timings_per_token": True,
        "samplers": ["top_k"],
        "dry_sequence_breakers": ["a"],
        "reasoning_budget_message": "",
        "n_predict": -1,
    },
    "guidellm": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_completion_tokens": 4,
        "stop": None,
        "ignore_eos": True,
    },
    "messages": {
        "messages": [{"role": "user", "content": "hi", "id": "m", "timestamp": 1, "models": []}],
    },
    "hints": {"store": True, "reasoning_effort": "low", "prediction": {"type": "content"}},
}


@pytest.mark.parametrize("client", SENT_BY)
def test_a_clients_own_fields_are_ignored_and_named(client):
    async def body():
        sent = {"messages": HI, **SENT_BY[client]}
        samplers = installed_samplers()
        engine = ScriptedEngine(lambda _: b"ok", config=config(candidates=32), samplers=samplers)
        async with asked(engine) as (live, _):
            url = f"{live.url}/v1/chat/completions"
            async with live.http.post(url, json=sent) as response:
                assert response.status == 200, await response.text()
                ignored = response.headers.get("X-Ignored-Fields", "").split(", ")
        known = {"messages", "stream", "stream_options", "stop", "ignore_eos"}
        aliases = {"repeat_penalty", "n_predict", "max_completion_tokens"}
        top = {name for name in ignored if name and "." not in name}
        assert top == sent.keys() - known - aliases
        if client == "messages":
            assert set(ignored) == {f"messages[].{name}" for name in ("id", "timestamp", "models")}

    scenario(body)


def test_a_field_is_refused_under_the_name_it_came_under():
    async def body():
        samplers = installed_samplers()
        engine = ScriptedEngine(lambda _: b"ok", config=config(candidates=32), samplers=samplers)
        async with asked(engine) as (live, _):
            for sent in ({"repeat_penalty": 0}, {"max_completion_tokens": 0}, {"n_predict": "x"}):
                (name,) = sent
                body = {"messages": HI, **sent}
                error = (await post(live, "/v1/chat/completions", body, 400))["error"]
                assert error["param"] == name
                assert error["message"].startswith(f"{name} is ")

    scenario(body)


@pytest.mark.parametrize(
    ("path", "prompt"),
    [("/v1/chat/completions", {"messages": HI}), ("/v1/completions", {"prompt": ["ab", "c"]})],
)
def test_usage_comes_with_every_chunk_where_that_is_asked(path, prompt):
    async def body():
        async with asked(saying(b"xyz")) as (live, _):
            options = {"include_usage": True, "continuous_usage_stats": True}
            sent = {**prompt, "n": 2, "stream": True, "stream_options": options}
            async with live.http.post(f"{live.url}{path}", json=sent) as response:
                assert "X-Ignored-Fields" not in response.headers
                *chunks, last, done = events_of(await response.text())
            assert done == "[DONE]" and last["choices"] == []
            counts = [each["usage"]["completion_tokens"] for each in chunks]
            assert counts == sorted(counts) and len(set(counts)) > 2
            whole = last["usage"]
            answers = 2 if "messages" in prompt else 4
            assert counts[-1] == 3 * answers  # the end tokens are counted at the end
            assert whole["completion_tokens"] == 4 * answers
            for each in chunks:
                usage = each["usage"]
                assert usage["prompt_tokens"] == whole["prompt_tokens"]
                assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            sent["stream_options"] = {"continuous_usage_stats": True}
            async with live.http.post(f"{live.url}{path}", json=sent) as response:
                told = events_of(await response.text())[:-1]
            assert all("usage" not in each for each in told)

    scenario(body)


@pytest.mark.parametrize("name", ["", "a b", "f\n", "f\0", "<|im_end|>", "é", "x" * 65])
def test_functions_have_names_as_openai_has_them(name):
    async def body():
        async with asked() as (live, _):
            tool = {"type": "function", "function": {"name": name}}
            call = {"id": "c", "function": {"name": name, "arguments": "{}"}}
            past = [*HI, {"role": "assistant", "tool_calls": [call]}]
            for sent, param in (
                ({"messages": HI, "tools": [tool]}, "tools[0].function.name"),
                ({"messages": HI, "tool_choice": tool}, "tool_choice.function.name"),
                ({"messages": past}, "messages[1].tool_calls[0].function.name"),
            ):
                error = (await post(live, "/v1/chat/completions", sent, 400))["error"]
                assert error["param"] == param
                assert repr(name[:50])[:-1] in error["message"]

    scenario(body)


def test_a_call_that_could_not_be_sent_back_is_text():
    async def body():
        call = b'<tool_call>\n{"name": "look out", "arguments": {}}\n</tool_call>'
        async with asked(saying(call, context=1024)) as (_, client):
            message = (await ask(client, tools=[LOOK])).choices[0].message
            assert message.tool_calls is None
            assert message.content == call.decode()

    scenario(body)


@pytest.mark.parametrize("key", ["01", " 1", "+1", "-1", "1.0", "\uff11", "", "1_0"])
def test_a_token_of_a_bias_has_one_spelling(key):
    async def body():
        samplers = installed_samplers()
        engine = ScriptedEngine(lambda _: b"ok", config=config(candidates=32), samplers=samplers)
        async with asked(engine) as (live, _):
            sent = {"messages": HI, "logit_bias": {key: 1}}
            error = (await post(live, "/v1/chat/completions", sent, 400))["error"]
            assert error["param"] == "logit_bias"
            assert "plain digits" in error["message"]

    scenario(body)


def test_errors_are_the_clients_own_exceptions():
    async def body():
        async with (
            asked(api_keys=("secret",)) as (live, wrong),
            client_of(live, api_key="secret") as client,
        ):
            with pytest.raises(openai.AuthenticationError):
                await ask(wrong)
            with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist") as caught:
                await ask(client, model="gpt-9")
            assert caught.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as too_long:
                await ask(client, messages=[{"role": "user", "content": "x" * 300}])
            assert too_long.value.code == "context_length_exceeded"

    scenario(body)


def test_an_impatient_client_leaves_and_nothing_is_held():
    async def body():
        async with asked(saying(b"x" * 200)) as (live, client):
            engine_step = live.engine.step
            live.engine.step = lambda: asyncio.run(asyncio.sleep(0.02)) or engine_step()
            with pytest.raises(openai.APITimeoutError):
                await ask(client, timeout=0.2)
            live.engine.step = engine_step
            await live.settled()

    scenario(body)


def test_a_fault_in_the_stream_is_the_clients_exception():
    async def body():
        async with asked(ScriptedEngine(lambda _: [72, 105, None], config=config())) as (_, client):
            with pytest.raises(openai.APIError):
                async for _ in await ask(client, stream=True):
                    pass
            with pytest.raises(openai.InternalServerError):
                await ask(client)

    scenario(body)


def test_a_hundred_streams_at_once_each_get_their_own():
    async def body():
        def script(prompt):
            text = bytes(id_ for id_ in prompt if id_ < 256)
            asked_for = text.partition(b"user\n")[2].partition(b"\n")[0]
            return b"You are number " + asked_for + b"."

        async with asked(ScriptedEngine(script, config=config(slots=8))) as (live, client):

            async def one(number: int) -> str:
                messages = [{"role": "user", "content": str(number)}]
                texts, *_ = await joined(await ask(client, messages=messages, stream=True))
                return texts[0]

            found = await asyncio.gather(*map(one, range(100)))
            assert found == [f"You are number {number}." for number in range(100)]
            await live.settled()

    scenario(body)


def test_random_answers_stream_as_they_are_whole():
    """Broken characters, stop texts and things that look like calls, in any mixture."""

    async def body():
        random = Random(5)
        pieces = [b'<tool_call>{"name": "f", "arguments": {', b"}}</tool_call>", b"<tool_call>"]
        pieces += ["🙂".encode()[:2], "é".encode(), b"\xff", b"STO", b"STOP", b"\n", b'"', b"x"]
        answers = [b"".join(random.choices(pieces, k=12)) for _ in range(60)]

        def script(prompt):
            number = (
                bytes(id_ for id_ in prompt if id_ < 256).rpartition(b"#")[2].partition(b"\n")[0]
            )
            return answers[int(number)] if number.isdigit() else b""

        engine = ScriptedEngine(script, config=config(context=1024, slots=8))
        async with asked(engine) as (_, client):

            async def compare(number: int) -> bool:
                more = {
                    "messages": [{"role": "user", "content": f"#{number}"}],
                    "stop": ["STOP"],
                    "tools": [LOOK],
                }
                message = (await ask(client, **more)).choices[0]
                texts, calls, ends, _ = await joined(await ask(client, stream=True, **more))
                assert texts == {0: message.message.content or ""}
                assert ends == {0: message.finish_reason}
                found = [
                    (one.function.name, one.function.arguments)
                    for one in message.message.tool_calls or ()
                ]
                assert [(name, text) for _, name, text in calls.values()] == found
                assert "STOP" not in texts[0]
                return bool(found)

            called = await asyncio.gather(*map(compare, range(len(answers))))
            assert any(called)
            assert not all(called)

    scenario(body)


def test_the_synchronous_client_is_served_too():
    async def body():
        async with asked() as (live, _):

            def talk() -> tuple[str, str]:
                with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
                    whole = ask(client).choices[0].message.content
                    parts = [chunk.choices[0].delta.content for chunk in ask(client, stream=True)]
                    return whole, "".join(filter(None, parts))

            assert await asyncio.to_thread(talk) == ("Hello!", "Hello!")

    scenario(body)


def test_a_full_context_drops_the_oldest_turns_if_asked():
    turns = [{"role": role, "content": "x" * 40} for role in ("user", "assistant") * 5]
    body = {"model": MODEL, "messages": [*turns, *HI], "max_tokens": 20}

    async def run():
        async with asked() as (live, _):
            refused = await post(live, "/v1/chat/completions", body, 400)
            assert refused["error"]["code"] == "context_length_exceeded"
            for stream in (False, True):
                sent = body | {
                    "context_overflow": "drop_oldest",
                    "stream": stream,
                    "stream_options": {"include_usage": True} if stream else None,
                }
                url = f"{live.url}/v1/chat/completions"
                async with live.http.post(url, json=sent) as response:
                    text = await response.text()
                    assert response.status == 200, text
                    dropped = int(response.headers["X-Dropped-Messages"])
                    assert 0 < dropped <= 10
                    assert f'"dropped_messages":{dropped}' in text.replace(" ", "")
            kept = await post(
                live, "/v1/chat/completions", body | {"messages": HI, "context_overflow": "error"}
            )
            assert "dropped_messages" not in kept["usage"]["prompt_tokens_details"]
            wrong = await post(live, "/v1/chat/completions", body | {"context_overflow": "no"}, 400)
            assert "context_overflow" in wrong["error"]["message"]

    scenario(run)
