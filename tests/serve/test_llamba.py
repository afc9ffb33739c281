"""The LLaMbA dialect: its lines, batches of thousands, and a classification with right labels."""

import asyncio

import pytest

from jaxllama.serve.dialects.llamba.sampling import knobs_of
from jaxllama.serve.dialects.llamba.shapes import LlambaCompletionQuery
from jaxllama.service.bounds import Bounds
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import Gate, config, connect, events_of, post, running, scenario
from tests.serve.dialects import HI, everyone
from tests.support import installed_samplers


def serving(answer=b"Hello!", *, slots=4, more=None, **settings):
    script = answer if callable(answer) else (lambda _: answer)
    size = config(candidates=32, context=1024, slots=slots)
    engine = ScriptedEngine(script, config=size, samplers=installed_samplers())
    return running(engine, dialects=everyone(**(more or {})), **settings)


async def ask(live, path, body, status=200, **headers):
    async with live.http.post(f"{live.url}{path}", json=body, headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.text()


def text_of(prompt) -> str:
    return bytes(id_ for id_ in prompt if id_ < 256).decode()


@pytest.mark.origin("LLaMbA: chat and text completions, stream lines, ping")
def test_the_lines_of_a_stream_byte_for_byte():
    async def body():
        async with serving(b"Hi") as live:
            assert await ask(live, "/chat/completion", {"messages": HI, "stream": True}) == (
                'data: {"content":null,"delta":"H","finish_reason":"none"}\n\n'
                'data: {"content":null,"delta":"i","finish_reason":"none"}\n\n'
                'data: {"content":null,"delta":"","finish_reason":"stop"}\n\n'
            )
            cut = {"prompt": "hi", "stream": True, "max_tokens": 1}
            assert (await ask(live, "/text-completion/completion", cut)).endswith('"limit"}\n\n')
            assert await live.status("/ping") == 200

    scenario(body)


@pytest.mark.origin("LLaMbA: `continue`, `appendText`, tokens of a conversation")
def test_messages_are_trimmed_but_for_the_last_which_may_be_continued():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(text_of(prompt))
            return b"."

        async with serving(script) as live:
            said = [{"role": "user", "content": " one "}, {"role": "assistant", "content": " two"}]
            await ask(live, "/chat/completion", {"messages": said, "continue": True})
            assert "user\none\n" in prompts[-1] and prompts[-1].endswith(" two")
            await ask(live, "/chat/completion", {"messages": HI, "appendText": "Well, "})
            assert prompts[-1].endswith("assistant\nWell, ")
            tokens = await ask(live, "/chat/tokenize", {"messages": HI})
            assert tokens.endswith("\n") and '"str":"h"' in tokens

    scenario(body)


@pytest.mark.origin("LLaMbA: the error of an answer that cannot fit")
def test_an_answer_that_cannot_fit_is_refused_with_the_numbers():
    async def body():
        async with serving() as live:
            body = {"prompt": "hi", "max_tokens": 5000}
            told = await ask(live, "/text-completion/completion", body, 400)
            assert told == "Body of 2 requested 5000, surpassing 1024.\n"

    scenario(body)


@pytest.mark.origin("LLaMbA: batches larger than the queue, streamed and not")
def test_a_batch_larger_than_the_queue_is_answered_in_order():
    async def body():
        async with serving(lambda prompt: prompt[::-1], bounds=Bounds(queue_requests=6)) as live:
            texts = [f"text {number}" for number in range(300)]
            queries = [{"prompt": f" {text} "} for text in texts]
            asked = {"completionQueries": queries, "chatQueries": [{"messages": HI}]}
            async with live.http.post(f"{live.url}/batch", json=asked) as response:
                found = await response.json()
            assert [each["id"] for each in found] == list(range(301))
            told = [each["response"]["content"] for each in found[:300]]
            assert told == [text[::-1] for text in texts]
            assert found[0]["response"] == {
                "content": "0 txet",
                "delta": None,
                "finish_reason": "stop",
            }
            events = events_of(await ask(live, "/batch", asked | {"stream": True}))
            streamed = [""] * 301
            for event in events:
                ids = [each["id"] for each in event["responses"]]
                assert len(set(ids)) == len(ids)
                for each in event["responses"]:
                    streamed[each["id"]] += each["response"]["delta"]
            assert streamed[:300] == told
            await live.settled()

    scenario(body)


@pytest.mark.origin("LLaMbA: a batch is cancelled as one")
def test_a_batch_is_cancelled_as_one():
    async def body():
        async with serving(b"x" * 200, slots=2) as live:
            gate = Gate(live.engine)
            queries = [{"prompt": f"text {number}"} for number in range(100)]
            asked = {"completionQueries": queries}
            _, writer = await connect(live.url, post(asked, path="/batch"))
            await gate.advance(lambda: live.engine.slots.claimed == 2)
            await live.until(lambda: live.service.queue.items == 2)
            writer.close()
            gate.open()
            await live.settled()
            assert live.engine.ledger["finished"] < 10

    scenario(body)


def test_a_batch_that_has_begun_is_finished_while_the_server_drains():
    async def body():
        async with serving(b"ok", slots=1, drain_timeout=20.0) as live:
            gate = Gate(live.engine)
            asked = {"completionQueries": [{"prompt": f"text {number}"} for number in range(9)]}
            asking = asyncio.create_task(ask(live, "/batch", asked))
            await gate.advance(lambda: live.engine.slots.claimed == 1)
            stopping = asyncio.create_task(live.server.stop())
            await live.until(lambda: live.service.is_draining)
            gate.open()
            assert (await asking).count('"ok"') == 9
            assert await stopping

    scenario(body)


@pytest.mark.origin("LLaMbA: stops of a batch")
def test_a_stop_of_a_batch_belongs_to_the_answer():
    async def body():
        async with serving(b"one\ntwo") as live:
            asked = {"completionQueries": [{"prompt": "hi"}], "stop": ["\\n"]}
            assert '"content":"one\\n"' in await ask(live, "/batch", asked)

    scenario(body)


def test_a_wrong_query_of_a_batch_refuses_it():
    async def body():
        async with serving() as live:
            assert "empty" in await ask(live, "/batch", {}, 400)
            many = {"completionQueries": [{"prompt": "hi"}] * 4097}
            assert "at most 4096" in await ask(live, "/batch", many, 400)
            last = [{"prompt": "hi"}, {"prompt": "hi", "temperature": 1, "max_tokens": 0}]
            asked = {"completionQueries": last, "stream": True}
            async with live.http.post(f"{live.url}/batch", json=asked) as response:
                assert response.status in (200, 400)  # after the first answer, or before it
                assert "max_tokens is 0" in await response.text()

    scenario(body)


CLASSIFY = {
    "prompt": "I love it!",
    "question": "Which mood?",
    "validResponses": ["bad", "neutral", "good"],
}


@pytest.mark.origin("LLaMbA: classification")
def test_a_classification_has_right_labels_and_all_probabilities():
    async def body():
        async with serving(b"3.") as live:
            assert await ask(live, "/classify", CLASSIFY) == "3\n"
            async with live.http.post(
                f"{live.url}/classify", json=CLASSIFY, headers={"Accept": "application/json"}
            ) as response:
                found = await response.json()
            assert (found["label"], found["response"]) == (3, "good")
            assert sum(found["probabilities"]) == pytest.approx(1)
            assert max(found["probabilities"]) == found["probabilities"][2]

    scenario(body)


def test_the_body_tells_whose_classification_it_is():
    async def body():
        async with serving(b"3.") as live:
            ours = {"prompt": "2 + 1 =", "labels": ["3.", "4."]}
            assert '"label":"3."' in await ask(live, "/classify", ours)
            error = await ask(live, "/classify", CLASSIFY | {"validResponses": []}, 400)
            assert error.startswith("validResponses is empty")
            many = CLASSIFY | {"validResponses": ["x"] * 21}
            assert "validResponses has 21 entries" in await ask(live, "/classify", many, 400)
            async with live.http.get(f"{live.url}/openapi.json") as response:
                described = (await response.json())["paths"]["/classify"]["post"]
            schema = described["requestBody"]["content"]["application/json"]["schema"]
            names = [each["$ref"].rpartition("/")[2] for each in schema["anyOf"]]
            assert sorted(names) == ["ClassifyBody", "LlambaClassificationQuery"]
            assert set(described["responses"]["200"]["content"]) == {
                "application/json",
                "text/plain",
            }

    scenario(body)


def knobs(sampler, **query):
    engine = ScriptedEngine(lambda _: b"", samplers=installed_samplers())

    class AnyModel:
        knobs = frozenset(engine.bank.knobs) | {"temperature", "temperature_last", "max_tokens"}

    return knobs_of(LlambaCompletionQuery(prompt="hi", **query), sampler, AnyModel)


@pytest.mark.origin("LLaMbA: Standard, Quick and llama.cpp samplers")
def test_the_samplers_are_llambas():
    standard = knobs("standard", temperature=3.0, min_tokens=4, repetition_range=7)
    assert standard == {
        "max_tokens": 300,
        "temperature": 0.0,
        "temperature_noise": 2.0,
        "ban_refusals": 4,
        "repetition_window": 7,
        "repetition_sign_blind": True,
    }
    assert knobs("standard", presence_penalty=1.0)["prompt_penalty_window"] == 2048
    assert knobs("quick", max_tokens=5)["frequency_penalty"] == 0.1
    chain = knobs("standard", top_p=0.5, temperature=0.8)
    assert (chain["top_p"], chain["top_k"], chain["temperature"]) == (0.5, 100, 0.8)
    assert chain["temperature_last"] is True


def test_the_sampler_is_an_option_of_the_operator():
    (dialect,) = everyone(dialects=("llamba",), dialect_options=("llamba.sampler=quick",))
    assert dialect.options.sampler == "quick"
