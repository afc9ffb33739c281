"""Answers that are held to a form, asked for by OpenAI's own client.

The scripted engine says what is in its script only where a constraint allows it.
"""

import json

import openai
import pytest

from jaxllama.testing import ScriptedEngine
from tests.serve.clients import HI, MODEL, asked
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


def test_a_schema_that_is_none_is_refused():
    async def body():
        async with asked(obedient()) as (_, client):
            form = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "x"}}}
            with pytest.raises(openai.BadRequestError, match="json_schema"):
                await ask(client, response_format=form)

    scenario(body)
