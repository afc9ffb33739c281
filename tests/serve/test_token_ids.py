"""Token ids, and which stop ended an answer, as vLLM has them; streamed and whole alike."""

import pytest

from jaxllama.testing.byte_tokenizer import END_ID
from tests.serve.clients import HI, MODEL, asked, post
from tests.serve.conftest import events_of, scenario

ROUTES = {
    "/v1/chat/completions": {"model": MODEL, "messages": HI},
    "/v1/completions": {"model": MODEL, "prompt": "Say"},
}
EXCLAMATION = ord("!")


async def both(live, path, **more):
    """The choice of a whole answer, the chunks of the stream, and the prompt's ids in each."""
    sent = ROUTES[path] | more
    whole = await post(live, path, sent)
    async with live.http.post(f"{live.url}{path}", json=sent | {"stream": True}) as response:
        chunks = events_of(await response.text())[:-1]
    (choice,) = whole["choices"]
    first = chunks[0]
    prompts = (
        whole.get("prompt_token_ids", choice.get("prompt_token_ids")),
        first.get("prompt_token_ids", first["choices"][0].get("prompt_token_ids")),
    )
    return choice, [chunk["choices"][0] for chunk in chunks], prompts


@pytest.mark.parametrize("path", ROUTES)
def test_ids_of_prompt_and_answer_are_returned(path):
    async def body():
        async with asked() as (live, _):
            choice, chunks, prompts = await both(live, path, return_token_ids=True)
            assert choice["token_ids"] == [*b"Hello!", END_ID]
            assert [id_ for each in chunks for id_ in each.get("token_ids", [])] == [
                *b"Hello!",
                END_ID,
            ]
            assert prompts[0] == prompts[1]
            assert bytes(id_ for id_ in prompts[0] if id_ < 256) == (
                b"Say" if path == "/v1/completions" else b"user\nhi\nassistant\n"
            )

    scenario(body)


@pytest.mark.parametrize("path", ROUTES)
def test_ids_are_left_out_unless_asked(path):
    async def body():
        async with asked() as (live, _):
            choice, chunks, prompts = await both(live, path)
            assert "token_ids" not in choice
            assert not any("token_ids" in each for each in chunks)
            assert prompts == (None, None)

    scenario(body)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("more", "met"),
    [
        ({}, None),
        ({"stop": ["x", "lo"]}, "lo"),
        ({"stop": "!"}, "!"),
        ({"stop_token_ids": [EXCLAMATION]}, EXCLAMATION),
        ({"max_tokens": 3, "stop": "lo"}, None),
    ],
)
def test_the_stop_that_was_met_is_named(path, more, met):
    async def body():
        async with asked() as (live, _):
            choice, chunks, _ = await both(live, path, **more)
            assert choice["stop_reason"] == met
            assert chunks[-1]["stop_reason"] == met
            assert chunks[-1]["finish_reason"] == choice["finish_reason"]

    scenario(body)
