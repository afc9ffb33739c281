"""Completions, driven by OpenAI's own client."""

import math

import openai
import pytest

from jaxllama.testing import ScriptedEngine
from tests.serve.clients import MODEL, asked, post, saying
from tests.serve.conftest import config, scenario

LN2 = math.log(2)


def ask(client, prompt="ab", **more):
    return client.completions.create(**{"model": MODEL, "prompt": prompt} | more)


def numbering():
    """An engine whose nth answer is n, from 0; the first proves the engine."""
    count = iter(range(-1, 1000))
    return ScriptedEngine(lambda _: str(next(count)).encode(), config=config(slots=1))


def test_a_text_is_continued():
    async def body():
        async with asked() as (_, client):
            answer = await ask(client)
            (choice,) = answer.choices
            assert (choice.text, choice.finish_reason) == ("Hello!", "stop")
            assert answer.usage.prompt_tokens == 2

    scenario(body)


@pytest.mark.parametrize(
    ("prompt", "count", "tokens"),
    [("ab", 1, 2), (["ab", "c"], 2, 3), ([97, 98], 1, 2), ([[97], [98, 99]], 2, 3)],
)
def test_prompts_are_texts_or_token_ids_one_or_many(prompt, count, tokens):
    async def body():
        async with asked() as (_, client):
            answer = await ask(client, prompt, max_tokens=2)
            assert [one.text for one in answer.choices] == ["He"] * count
            assert [one.index for one in answer.choices] == list(range(count))
            assert answer.usage.prompt_tokens == tokens
            assert answer.usage.completion_tokens == 2 * count

    scenario(body)


def test_choices_are_numbered_prompt_by_prompt():
    async def body():
        async with asked(numbering()) as (_, client):
            answer = await ask(client, ["a", "b"], n=2)
            assert [one.text for one in answer.choices] == ["0", "1", "2", "3"]

    scenario(body)


def test_a_stream_says_what_the_whole_answer_says():
    async def body():
        async with asked() as (_, client):
            more = {"n": 2, "echo": True, "logprobs": 0}
            whole = await ask(client, ["ab", "c"], **more)
            texts, tokens, ends = {}, {}, {}
            options = {"include_usage": True}
            stream = await ask(client, ["ab", "c"], stream=True, stream_options=options, **more)
            async for chunk in stream:
                for one in chunk.choices:
                    texts[one.index] = texts.get(one.index, "") + one.text
                    found = one.logprobs
                    tokens.setdefault(one.index, []).extend(found.tokens if found else [])
                    ends[one.index] = one.finish_reason
            assert texts == {one.index: one.text for one in whole.choices}
            assert tokens == {one.index: one.logprobs.tokens for one in whole.choices}
            assert set(ends.values()) == {"stop"}
            assert chunk.usage.total_tokens == whole.usage.total_tokens

    scenario(body)


def test_logprobs_are_lists_of_equal_length():
    async def body():
        async with asked(saying("aé".encode())) as (_, client):
            found = (await ask(client, logprobs=2)).choices[0].logprobs
            assert found.tokens == ["a", "\ufffd", "\ufffd"]
            assert found.token_logprobs == pytest.approx([-LN2] * 3)
            assert found.top_logprobs[0] == pytest.approx({"a": -LN2, "b": -2 * LN2})
            assert found.text_offset == [0, 1, 1]
            assert (await ask(client)).choices[0].logprobs is None

    scenario(body)


def test_echo_tells_the_prompt_and_how_likely_it_is():
    async def body():
        async with asked(ScriptedEngine(lambda _: [98], config=config())) as (_, client):
            answer = await ask(client, "abc", echo=True, logprobs=0, max_tokens=1)
            (choice,) = answer.choices
            assert choice.text == "abcb"
            assert choice.logprobs.tokens == ["a", "b", "c", "b"]
            values = choice.logprobs.token_logprobs
            assert values[0] is None
            assert values[1:] == pytest.approx([-LN2, -2 * LN2, -LN2])
            assert choice.logprobs.text_offset == [0, 1, 2, 3]

    scenario(body)


def test_echo_tells_what_else_could_have_been_in_the_prompt():
    async def body():
        long = [98] * 70  # more than one tile
        async with asked(ScriptedEngine(lambda _: [98], config=config())) as (_, client):
            answer = await ask(client, [97, 99, *long], echo=True, logprobs=2, max_tokens=1)
            found = answer.choices[0].logprobs
            assert len(found.tokens) == len(found.top_logprobs) == 73
            assert found.top_logprobs[0] is None
            for top in found.top_logprobs[1:]:
                assert top == pytest.approx({"b": -LN2, "c": -2 * LN2})
            assert found.token_logprobs[1] == pytest.approx(-2 * LN2)

    scenario(body)


def test_a_prompt_is_scored_without_generating():
    async def body():
        async with asked() as (live, client):
            answer = await ask(client, [[97, 98], [99, 100]], echo=True, logprobs=0, max_tokens=0)
            assert [one.text for one in answer.choices] == ["ab", "cd"]
            assert answer.choices[0].finish_reason == "length"
            assert len(answer.choices[0].logprobs.tokens) == 2
            assert answer.usage.prompt_tokens == 4
            assert answer.usage.completion_tokens == 0
            assert live.engine.ledger["accepted"] == 1

    scenario(body)


def test_the_best_of_several_are_told_best_first():
    async def body():
        engine = numbering()
        note, worths = engine.programs.note, iter([-1.0, -3.0, -0.5])

        def noting(output, place, row, said):
            note(output, place, row, said)
            if row.wants:
                output.choice.logprob[place] = next(worths)

        engine.programs.note = noting
        async with asked(engine) as (_, client):
            answer = await ask(client, best_of=3, n=2, max_tokens=1)
            assert [one.text for one in answer.choices] == ["2", "0"]
            assert answer.choices[0].logprobs is None
            assert answer.usage.completion_tokens == 3

    scenario(body)


def test_a_seed_gives_every_choice_its_own_declared_stream():
    async def body():
        async with asked() as (live, _):
            seeds = []
            submit = live.engine.submit
            live.engine.submit = lambda request, *tail, **client: (
                seeds.append(request.seed) or submit(request, *tail, **client)
            )
            await post(live, "/v1/completions", {"prompt": "a", "n": 2, "seed": 3})
            assert seeds[0] == 3
            assert seeds[1] != 3

    scenario(body)


REFUSED = [
    ({"prompt": []}, "prompt", "empty or a mixed list"),
    ({"prompt": ["a", 1]}, "prompt", "mixed list"),
    ({"prompt": ""}, None, "prompt has 0 tokens"),
    ({"prompt": [1, -1]}, "prompt", "-1; token ids are whole numbers from 0 to 271"),
    ({"prompt": [272]}, "prompt", "272"),
    ({"prompt": [2**31]}, "prompt", "2147483648"),
    ({"prompt": [1.5]}, "prompt[0]", "float"),
    ({"prompt": [True]}, "prompt[0]", "bool"),
    ({"prompt": ["a"] * 17}, "prompts", "17 entries; at most 16"),
    ({"prompt": ["a"] * 3, "n": 16}, "answers", "answers is 48"),
    ({"suffix": "x"}, "suffix", "fill gaps"),
    ({"best_of": 17}, "best_of", "best_of is 17"),
    ({"best_of": 2, "n": 3}, "best_of", "at least n, 3"),
    ({"best_of": 2, "stream": True}, "best_of", "cannot stream"),
    ({"logprobs": 21}, "logprobs", "logprobs is 21"),
    ({"logprobs": -1}, "logprobs", "logprobs is -1"),
    ({"max_tokens": 0}, "max_tokens", "needs echo"),
    ({"max_tokens": 0, "echo": True, "stream": True}, "max_tokens", "nothing is generated"),
    ({"max_tokens": 255}, None, "together 256|255, together"),
    ({"seed": -1}, "seed", "seed is -1"),
    ({"tools": []}, "tools", "unknown parameter"),
]


def test_what_is_wrong_is_named_with_its_bound():
    async def body():
        async with asked(strict=True) as (live, _):
            for fields, param, words in REFUSED:
                sent = {"prompt": "ab", **fields}
                error = (await post(live, "/v1/completions", sent, 400))["error"]
                assert error["param"] == param, (fields, error)
                assert any(word in error["message"] for word in words.split("|")), error
            assert live.engine.ledger["accepted"] == 1

    scenario(body)


def test_prompt_and_budget_fill_the_context_exactly():
    async def body():
        async with asked(saying(b"x" * 300)) as (_, client):
            answer = await ask(client, "a" * 100, max_tokens=156)
            assert len(answer.choices[0].text) == 156
            with pytest.raises(openai.BadRequestError) as caught:
                await ask(client, "a" * 100, max_tokens=157)
            assert caught.value.code == "context_length_exceeded"

    scenario(body)


@pytest.mark.parametrize("wrong", [0.5, 0.0, True])
@pytest.mark.parametrize("name", ["stop", "stop_ids"])
def test_a_stop_of_a_wrong_type_is_refused(name, wrong):
    async def body():
        async with asked() as (live, _):
            sent = {"prompt": "Hello", "max_tokens": 2, name: wrong}
            error = (await post(live, "/v1/completions", sent, 400))["error"]
            assert error["param"] == name

    scenario(body)
