"""Responses, embeddings and models, driven by OpenAI's own client."""

import base64
import math

import numpy as np
import openai
import pytest

from tests.serve.clients import MODEL, asked, post, saying
from tests.serve.conftest import scenario


def test_a_response_has_text_and_its_cost():
    async def body():
        async with asked() as (_, client):
            answer = await client.responses.create(
                model=MODEL, input="hi", instructions="Be brief.", metadata={"a": "b"}
            )
            assert answer.output_text == "Hello!"
            assert answer.status == "completed"
            assert answer.metadata == {"a": "b"}
            assert answer.usage.output_tokens == 7
            assert answer.usage.input_tokens == 40  # 19 of them are the instructions

    scenario(body)


def test_a_response_that_is_cut_is_incomplete():
    async def body():
        async with asked() as (_, client):
            answer = await client.responses.create(model=MODEL, input="hi", max_output_tokens=2)
            assert answer.output_text == "He"
            assert answer.status == "incomplete"
            assert answer.incomplete_details.reason == "max_output_tokens"

    scenario(body)


def test_the_events_of_a_response_come_in_order():
    async def body():
        async with asked(saying(b"Hi!")) as (_, client):
            events = [
                event
                async for event in await client.responses.create(
                    model=MODEL, input=[{"role": "user", "content": "hi"}], stream=True
                )
            ]
            assert [event.type.removeprefix("response.") for event in events] == [
                "created",
                "in_progress",
                "output_item.added",
                "content_part.added",
                *["output_text.delta"] * 3,
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "completed",
            ]
            assert [event.sequence_number for event in events] == list(range(11))
            deltas = [event.delta for event in events if event.type.endswith("delta")]
            assert "".join(deltas) == "Hi!" == events[7].text
            assert events[-1].response.output_text == "Hi!"
            assert events[0].response.output == []

    scenario(body)


def test_the_client_s_own_stream_helper_follows():
    async def body():
        async with (
            asked() as (_, client),
            client.responses.stream(model=MODEL, input="hi") as stream,
        ):
            final = await stream.get_final_response()
            assert final.output_text == "Hello!"

    scenario(body)


REFUSED_RESPONSES = [
    ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "runs no tools itself"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
    ({"tool_choice": "required"}, "tool_choice", "no such tool"),
    ({"background": True}, "background", "while its client waits"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort", "does not think"),
    ({"truncation": "middle"}, "truncation", "'middle'"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "'xml'"),
    ({"max_tokens": 3, "max_output_tokens": 4}, "max_tokens", "differ"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0"),
    ({"logprobs": 1}, "logprobs", "/v1/chat/completions"),
    ({"input": [{"type": "item_reference"}]}, "input[0].type", "'item_reference'"),
    ({"input": [{"type": "function_call_output"}]}, "input[0].output", "is missing"),
    ({"input": [{"role": "user"}]}, "input[0].content", "is missing"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "messages[0]",
        "reads text only",
    ),
]


def test_what_a_response_cannot_do_is_refused_by_name():
    async def body():
        async with asked(strict=True) as (live, _):
            for fields, param, words in REFUSED_RESPONSES:
                error = (await post(live, "/v1/responses", {"input": "hi", **fields}, 400))["error"]
                assert error["param"] == param, (fields, error)
                assert words in error["message"], error
            assert live.engine.ledger["accepted"] == 1

    scenario(body)


def test_texts_become_vectors_of_length_one():
    async def body():
        async with asked() as (_, client):
            answer = await client.embeddings.create(model=MODEL, input=["ab", "cde"])
            assert [one.index for one in answer.data] == [0, 1]
            for one in answer.data:
                assert math.isclose(np.linalg.norm(one.embedding), 1, rel_tol=1e-5)
            assert answer.usage.prompt_tokens == 5

    scenario(body)


def test_numbers_and_base64_are_the_same_vector():
    async def body():
        async with asked() as (live, _):
            found = {}
            for form in ("float", "base64"):
                sent = {"input": "ab", "encoding_format": form}
                answer = await post(live, "/v1/embeddings", sent)
                found[form] = answer["data"][0]["embedding"]
            decoded = np.frombuffer(base64.b64decode(found["base64"]), "<f4")
            assert decoded.tolist() == pytest.approx(found["float"])

    scenario(body)


def test_a_vector_is_the_mean_or_the_last_token_s():
    async def body():
        async with asked() as (live, _):
            found = {}
            for pooling in ("mean", "last"):
                sent = {"input": [1, 2, 1], "pooling": pooling}
                answer = await post(live, "/v1/embeddings", sent)
                found[pooling] = np.array(answer["data"][0]["embedding"])
            # The scripted engine's vectors point along their token's axis, as long as their place.
            assert found["last"][1] == pytest.approx(1)
            assert found["mean"][[1, 2]] == pytest.approx(np.array([4, 2]) / math.sqrt(20))

    scenario(body)


REFUSED_EMBEDDINGS = [
    ({"dimensions": 3}, "dimensions", "cannot be cut"),
    ({"input": []}, "input", "empty"),
    ({"input": [1, "a"]}, "input", "mixed"),
    ({"input": ["a"] * 2049}, "inputs", "2049 entries; at most 2048"),
    ({"input": "x" * 300}, None, "prompt has 300 tokens"),
    ({"input": [272]}, "prompt", "272"),
    ({"encoding_format": "int8"}, "encoding_format", "'int8'"),
    ({"temperature": 1}, "temperature", "unknown parameter"),
]


def test_what_cannot_be_embedded_is_refused_by_name():
    async def body():
        async with asked(strict=True) as (live, _):
            for fields, param, words in REFUSED_EMBEDDINGS:
                sent = {"input": "ab", **fields}
                error = (await post(live, "/v1/embeddings", sent, 400))["error"]
                assert error["param"] == param, (fields, error)
                assert words in error["message"], error

    scenario(body)


def test_the_model_is_listed_and_described():
    async def body():
        async with asked() as (live, client):
            (model,) = (await client.models.list()).data
            assert model.id == MODEL
            assert (await client.models.retrieve(MODEL)).context_length == 256
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("another")
            for name in ("..%2F..%2Fetc", "a%00b", "x" * 5000):
                assert await live.status(f"/v1/models/{name}") in (400, 404)

    scenario(body)


def test_a_wrong_method_is_told_the_right_one():
    async def body():
        async with (
            asked() as (live, _),
            live.http.get(f"{live.url}/v1/chat/completions") as response,
        ):
            assert response.status == 405
            assert response.headers["Allow"] == "POST"
            assert (await response.json())["error"]["code"] == "method_not_allowed"

    scenario(body)
