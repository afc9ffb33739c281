"""Answers that are held to a form, asked for by OpenAI's own client.

The scripted engine says what is in its script only where a constraint allows it.
"""

import json

from jaxllama.testing import ScriptedEngine
from tests.serve.clients import HI, MODEL, asked, post
from tests.serve.conftest import config, scenario
from tests.support import installed_samplers

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Linz", "Wien"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
WAIT = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}}
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def obedient(answer: bytes = b"No.") -> ScriptedEngine:
    samplers = {"constraint": installed_samplers()["constraint"]}
    return ScriptedEngine(lambda _: answer, config=config(context=1024), samplers=samplers)


def ask(client, **more):
    settings = {"model": MODEL, "messages": HI, "temperature": 0, "max_tokens": 200}
    return client.chat.completions.create(**settings | more)


def test_an_answer_keeps_to_its_schema():
    async def body():
        async with asked(obedient()) as (_, client):
            form = {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR}}
            choice = (await ask(client, response_format=form)).choices[0]
            assert choice.finish_reason == "stop"
            assert json.loads(choice.message.content)["colour"] in ("red", "blue")
            response = await client.responses.create(
                model=MODEL,
                input="hi",
                max_output_tokens=60,
                text={"format": {"type": "json_schema", "name": "c", "schema": COLOUR}},
            )
            assert json.loads(response.output_text)["colour"] in ("red", "blue")

    scenario(body)


def test_any_object_will_do_where_that_is_asked():
    async def body():
        async with asked(obedient(b"x}")) as (_, client):
            form = {"type": "json_object"}
            assert (await ask(client, response_format=form)).choices[0].message.content == "{}"

    scenario(body)


def test_a_tool_is_called_where_one_must_be():
    async def body():
        async with asked(obedient()) as (_, client):
            for choice in ("required", {"type": "function", "function": {"name": "look"}}):
                answer = await ask(client, tools=[LOOK], tool_choice=choice)
                (call,) = answer.choices[0].message.tool_calls
                assert answer.choices[0].message.content is None
                assert answer.choices[0].finish_reason == "tool_calls"
                assert call.function.name == "look"
                assert json.loads(call.function.arguments)["town"] in ("Linz", "Wien")

    scenario(body)


def test_a_strict_tool_is_held_to_its_schema_where_calls_are_free():
    said = b'Well: <tool_call>\n{"name": "look", "arguments": {"town": "Rom"}}\n</tool_call>'

    async def body():
        async with asked(obedient(said)) as (_, client):
            message = (await ask(client, tools=[LOOK, WAIT])).choices[0].message
            assert message.content.startswith("Well:")
            assert json.loads(message.tool_calls[0].function.arguments)["town"] in ("Linz", "Wien")
        loose = {"type": "function", "function": LOOK["function"] | {"strict": False}}
        async with asked(obedient(said)) as (_, client):
            message = (await ask(client, tools=[loose, WAIT])).choices[0].message
            assert json.loads(message.tool_calls[0].function.arguments)["town"] == "Rom"

    scenario(body)


def test_a_schema_that_is_none_is_refused_by_the_name_the_client_gave_it():
    none = {"type": "x"}
    chat = {"messages": HI}
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": none}}
    tool = {"type": "function", "function": {"name": "f", "parameters": none, "strict": True}}
    text = {"format": {"type": "json_schema", "name": "c", "schema": none}}
    asks = [
        (
            chat | {"response_format": form},
            "chat/completions",
            "response_format.json_schema.schema",
        ),
        (
            {"prompt": "a", "response_format": form},
            "completions",
            "response_format.json_schema.schema",
        ),
        ({"input": "a", "text": text}, "responses", "text.format.schema"),
        (chat | {"json_schema": none}, "chat/completions", "json_schema"),
        (chat | {"tools": [WAIT, tool]}, "chat/completions", "tools[1].function.parameters"),
        (
            chat | {"tools": [tool], "tool_choice": "required"},
            "chat/completions",
            "tools[0].function.parameters",
        ),
        (chat | {"tools": [tool, tool], "tool_choice": "required"}, "chat/completions", "tools"),
    ]

    async def body():
        async with asked(obedient()) as (live, _):
            for sent, path, name in asks:
                error = (await post(live, f"/v1/{path}", sent, 400))["error"]
                assert error["param"] == name
                assert error["message"].startswith(f"{name} cannot be followed")

    scenario(body)


def test_one_answer_has_one_form():
    both = {"response_format": {"type": "json_object"}, "messages": HI}
    asks = [
        (both | {"json_object": True}, "json_object"),
        (both | {"regex": "a"}, "regex"),
        (both | {"tools": [LOOK]}, "response_format"),
        (both | {"tools": [WAIT], "tool_choice": "required"}, "response_format"),
    ]

    async def body():
        async with asked(obedient()) as (live, _):
            for sent, name in asks:
                error = (await post(live, "/v1/chat/completions", sent, 400))["error"]
                assert error["param"] == name
                assert "response_format and " in error["message"]

    scenario(body)
