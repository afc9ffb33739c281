"""Documents ranked by likelihood, and prompt formats by name on every route that renders one."""

import math

import pytest

from jaxllama.intake import Intake
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain
from tests.serve.clients import asked, post
from tests.serve.conftest import config, scenario

TURNS = [{"role": "user", "content": "Hi"}]


def reader(script):
    """A server whose model knows two prompt formats; the script sees the text of the prompt."""
    engine = ScriptedEngine(
        lambda prompt: script(bytes(id_ for id_ in prompt if id_ < 256).decode()),
        config=config(context=1024),
    )
    own = ChatMl()
    intake = Intake(ByteTokenizer(), own, engine.bank, engine.config, other_formats=[Plain()])
    return asked(engine, intake=intake)


def asking_about(text: str) -> bytes:
    """A model that would ask `ab` about a text with rain in it, and nothing else."""
    if "rain" not in text:
        return b"z"
    return b"b" if text.endswith("a") else b"a"


def test_documents_are_ranked_by_how_likely_the_query_is_after_them():
    async def body():
        async with reader(asking_about) as (live, _):
            documents = ["sun", {"text": "rain"}, "snow"]
            sent = {"query": "ab", "documents": documents}
            found = await post(live, "/v1/rerank", sent)
            assert next(one["index"] for one in found["results"]) == 1
            best = found["results"][0]
            assert best["document"] == {"text": "rain"}
            assert math.isclose(best["relevance_score"], 0.5, rel_tol=1e-5)  # 1/2 for each token
            assert all(one["relevance_score"] < 1e-9 for one in found["results"][1:])
            assert found["usage"] == {"total_tokens": 6}
            more = {"top_n": 1, "return_documents": False}
            (one,) = (await post(live, "/v1/rerank", sent | more))["results"]
            assert one == {"index": 1, "relevance_score": best["relevance_score"]}
            pairs = {"text_1": "ab", "text_2": ["sun", "rain"]}
            data = (await post(live, "/v1/score", pairs))["data"]
            assert [one["index"] for one in data] == [0, 1]
            assert data[1]["score"] == best["relevance_score"] > data[0]["score"]

    scenario(body)


@pytest.mark.parametrize(
    ("path", "sent", "param"),
    [
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": " ", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 257}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "format": "none"}, "format"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a"] * 3}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/completions", {"prompt": [1], "format": "plain"}, "format"),
        ("/v1/completions", {"prompt": "a", "format": "none"}, "format"),
        ("/classify", {"prompt": "a", "labels": ["b"], "format": "plain"}, "format"),
        ("/tokenize", {"text": "a", "format": "plain"}, "format"),
        ("/apply-template", {"messages": TURNS, "format": "none"}, "format"),
    ],
)
def test_what_is_wrong_is_named(path, sent, param):
    async def body():
        async with reader(lambda _: b"a") as (live, _):
            assert (await post(live, path, sent, 400))["error"]["param"] == param

    scenario(body)


def test_a_format_is_chosen_by_name():
    prompts = []

    def script(text):
        prompts.append(text)
        return b"one<|im_end|>two"

    async def body():
        async with reader(script) as (live, _):
            sent = {"messages": TURNS, "format": "plain"}
            assert (await post(live, "/apply-template", sent))["prompt"] == "Hi"
            assert (await post(live, "/tokenize", sent))["tokens"] == [*b"Hi"]
            await post(live, "/classify", sent | {"labels": ["a", "b"]})
            assert prompts[-1] == "Hi"
            await post(live, "/score", {"messages": TURNS, "continuations": ["a"]})
            assert prompts[-1].startswith("user\nHi")
            path, asked_for = "/v1/completions", {"prompt": "Hi", "return_token_ids": True}
            (choice,) = (await post(live, path, asked_for))["choices"]
            assert (prompts[-1], choice["text"]) == ("Hi", "one<|im_end|>two")
            (choice,) = (await post(live, path, asked_for | {"format": "chatml"}))["choices"]
            assert prompts[-1] == "user\nHi\nassistant\n"
            assert (choice["text"], choice["stop_reason"]) == ("one", None)

    scenario(body)
