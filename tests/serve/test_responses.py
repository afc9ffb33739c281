"""Responses with tools, thoughts and a memory, driven by OpenAI's own client."""

import openai
import pytest

from jaxllama.errors import ConfigError, HttpError
from jaxllama.serve.dialects.openai import OpenAI, OpenAIOptions
from jaxllama.serve.dialects.openai.response_store import KeptResponse, ResponseStore
from jaxllama.testing import ScriptedEngine
from tests.serve.clients import MODEL, asked, client_of, saying
from tests.serve.conftest import config, running, scenario
from tests.serve.test_thinking import CALLING, Thinker
from tests.support import installed_samplers

CALL = b'Well. <tool_call>\n{"name": "look", "arguments": {"town": "Linz"}}\n</tool_call>'
LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks out.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
}


def listening(answer=b"Hello!"):
    """An engine that notes the texts of its prompts."""
    prompts = []

    def script(prompt):
        prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
        return answer(prompts[-1]) if callable(answer) else answer

    size = config(context=2048, candidates=32)
    return ScriptedEngine(script, config=size, samplers=installed_samplers()), prompts


def test_calls_are_items_and_their_results_go_on():
    async def body():
        engine, prompts = listening(lambda prompt: b"Rain." if "wet" in prompt else CALL)
        async with asked(engine) as (_, client):
            first = await client.responses.create(model=MODEL, input="Weather?", tools=[LOOK])
            text, call = first.output
            assert (text.type, text.content[0].text) == ("message", "Well.")
            assert (call.type, call.name, call.arguments) == (
                "function_call",
                "look",
                '{"town": "Linz"}',
            )
            assert first.tools[0].name == "look"
            result = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
            given = [{"role": "user", "content": "Weather?"}, *first.output, result]
            second = await client.responses.create(model=MODEL, input=given, tools=[LOOK])
            assert second.output_text == "Rain."
            whole = prompts[-1]
            third = await client.responses.create(
                model=MODEL, input=[result], tools=[LOOK], previous_response_id=first.id
            )
            assert third.output_text == "Rain."
            assert third.previous_response_id == first.id
            assert prompts[-1] == whole

    scenario(body)


def test_the_events_of_a_call_come_in_order():
    async def body():
        async with asked(saying(CALL, context=2048)) as (_, client):
            events = [
                event
                async for event in await client.responses.create(
                    model=MODEL, input="Weather?", tools=[LOOK], stream=True
                )
            ]
            kinds = [event.type.removeprefix("response.") for event in events]
            assert [kind for kind in dict.fromkeys(kinds) if kind != "content_part.added"] == [
                "created",
                "in_progress",
                "output_item.added",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "completed",
            ]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            pieces = [event for event in events if event.type.endswith("arguments.delta")]
            assert "".join(event.delta for event in pieces) == '{"town": "Linz"}'
            assert {event.output_index for event in pieces} == {1}
            added = [event.item for event in events if event.type.endswith("item.added")]
            done = [event.item for event in events if event.type.endswith("item.done")]
            assert added[1].arguments == ""
            assert done == events[-1].response.output
            async with client.responses.stream(
                model=MODEL, input="Weather?", tools=[LOOK]
            ) as stream:
                final = await stream.get_final_response()
            assert final.output[1].arguments == '{"town": "Linz"}'

    scenario(body)


def test_a_tool_choice_forces_a_call_or_none():
    async def body():
        engine, prompts = listening(b"No.")
        async with asked(engine) as (_, client):
            ask = client.responses.create
            for choice in ("required", {"type": "function", "name": "look"}):
                answer = await ask(
                    model=MODEL, input="a", tools=[LOOK], tool_choice=choice, max_output_tokens=30
                )
                assert not answer.output_text.startswith("No.")
            await ask(model=MODEL, input="a", tools=[LOOK], tool_choice="none")
            assert "Looks out." not in prompts[-1]

    scenario(body)


def test_thoughts_are_an_item_of_their_own():
    async def body():
        think = Thinker(CALLING)
        async with think.running() as live, client_of(live) as client:
            answer = await client.responses.create(model=MODEL, input="hi", tools=[LOOK])
            thoughts, call = answer.output
            assert (thoughts.type, thoughts.content[0].text) == ("reasoning", "Look.")
            assert call.name == "look"
            assert answer.usage.output_tokens_details.reasoning_tokens > 0
            stream = await client.responses.create(
                model=MODEL, input="hi", tools=[LOOK], stream=True
            )
            events = [event async for event in stream]
            pieces = [each.delta for each in events if each.type.endswith("reasoning_text.delta")]
            assert "".join(pieces) == "Look."
            result = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
            await client.responses.create(
                model=MODEL, input=[*answer.output, result], reasoning={"effort": "none"}
            )
            assert "<think>Look.</think>" in think.prompts[-1]
            assert think.prompts[-1].endswith("<think>\n\n</think>\n\n")

    scenario(body)


def test_stored_responses_are_read_continued_and_deleted():
    async def body():
        engine, prompts = listening()
        async with asked(engine) as (_, client):
            first = await client.responses.create(
                model=MODEL, input="One?", instructions="Be brief."
            )
            assert first.store
            assert await client.responses.retrieve(first.id) == first
            await client.responses.create(model=MODEL, input="Two?", previous_response_id=first.id)
            assert prompts[-1] == "user\nOne?\nassistant\nHello!\nuser\nTwo?\nassistant\n"
            await client.responses.delete(first.id)
            for asked_again in (
                client.responses.retrieve(first.id),
                client.responses.delete(first.id),
                client.responses.create(model=MODEL, input="a", previous_response_id=first.id),
            ):
                with pytest.raises(openai.NotFoundError, match="no response"):
                    await asked_again
            kept_off = await client.responses.create(model=MODEL, input="a", store=False)
            assert not kept_off.store
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(kept_off.id)

    scenario(body)


def test_streamed_responses_are_stored_too():
    async def body():
        async with asked() as (_, client):
            async with client.responses.stream(model=MODEL, input="hi") as stream:
                final = await stream.get_final_response()
            assert (await client.responses.retrieve(final.id)).output_text == "Hello!"

    scenario(body)


def test_other_keys_see_no_responses():
    async def body():
        async with running(dialects=[OpenAI()], api_keys=("mine", "theirs")) as live:
            async with client_of(live, api_key="mine") as mine:
                found = await mine.responses.create(model=MODEL, input="hi")
            async with client_of(live, api_key="theirs") as theirs:
                with pytest.raises(openai.NotFoundError):
                    await theirs.responses.retrieve(found.id)

    scenario(body)


def test_responses_on_disk_outlive_the_server(tmp_path):
    async def body():
        ids = []
        for _ in range(2):
            options = OpenAIOptions(folder=str(tmp_path), keep_responses=True)
            async with (
                running(dialects=[OpenAI(options)]) as live,
                client_of(live) as client,
            ):
                found = await client.responses.create(model=MODEL, input="hi")
                ids.append(found.id)
                for id_ in ids:
                    assert (await client.responses.retrieve(id_)).output_text == "Hello!"

    scenario(body)


def test_responses_on_disk_need_a_folder():
    with pytest.raises(ConfigError, match=r"give openai\.folder"):
        OpenAI(OpenAIOptions(keep_responses=True))


def kept(size: int) -> KeptResponse:
    return KeptResponse("", b"0", [{"role": "user", "content": "x" * size}])


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_store_drops_what_was_used_longest_ago(tmp_path, on_disk):
    store = ResponseStore(1000)
    if on_disk:
        store.open(tmp_path)
    ids = [f"resp-{number:024x}" for number in range(4)]
    for id_ in ids[:3]:
        store.keep(id_, kept(200))
    store.find(ids[0], "")
    store.keep(ids[3], kept(200))
    with pytest.raises(HttpError):
        store.find(ids[1], "")
    for id_ in (ids[0], ids[2], ids[3]):
        assert len(store.find(id_, "").turns[0]["content"]) == 200
    assert len(list(tmp_path.iterdir())) == (3 if on_disk else 0)
    with pytest.raises(HttpError):
        store.find("../secret", "")
