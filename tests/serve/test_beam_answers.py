"""Beam search over HTTP: the same answers as the search itself, in the client's turn."""

import asyncio
import math
from random import Random

import aiohttp
import pytest

from jaxllama.beams import SearchRules, search
from jaxllama.engine.programs import Programs
from jaxllama.service.bounds import Bounds
from jaxllama.testing import ScriptedEngine
from jaxllama.testing.byte_tokenizer import END_ID
from jaxllama.testing.models import TINY
from tests.serve.clients import asked, post
from tests.serve.conftest import config, scenario
from tests.support import installed_samplers, new_engine

PATH = "/v1/completions"


def next_token(prompt: tuple[int, ...]) -> int:
    """The likeliest token after a prompt: depends on all of it, and is often near the end token."""
    return Random(str(prompt)).choice([97, 98, END_ID - 1, END_ID])


def model(**sizes) -> ScriptedEngine:
    size = config(context=256, candidates=32, **sizes)
    return ScriptedEngine(lambda p: [next_token(p)], config=size, samplers=installed_samplers())


def expected(prompt: bytes, rules: SearchRules):
    """The answers of the search in Python, over the log-probabilities of the script."""

    def after(prefix):
        first = next_token((*prompt, *prefix))
        return [
            ((first + rank) % TINY.vocab_size, -(rank + 1) * math.log(2))
            for rank in range(rules.candidates)
        ]

    return search(lambda prefixes: [after(prefix) for prefix in prefixes], rules)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_the_answers_are_those_of_the_search(width, early, penalty):
    async def body():
        async with asked(model()) as (live, _):
            sent = {
                "prompt": ["ab", "cd"],
                "use_beam_search": True,
                "n": width,
                "max_tokens": 6,
                "length_penalty": penalty,
                "early_stopping": early,
                "return_token_ids": True,
            }
            answer = await post(live, PATH, sent)
            ends = frozenset(live.service.model.intake.tokenizer.end_ids)
            rules = SearchRules(width, 6, ends, penalty, early)
            wanted = [one for text in (b"ab", b"cd") for one in expected(text, rules)]
            assert [tuple(one["token_ids"]) for one in answer["choices"]] == [
                one.tokens for one in wanted
            ]
            for choice, one in zip(answer["choices"], wanted, strict=True):
                assert math.isclose(choice["score"], one.score, rel_tol=1e-5)
                is_whole = one.tokens[-1] in ends
                assert choice["finish_reason"] == ("stop" if is_whole else "length")
                assert len(choice["text"]) <= len(one.tokens)
            assert answer["usage"]["prompt_tokens"] == 4
            await live.settled()

    scenario(body)


def test_best_of_is_the_width_and_n_the_number_of_answers():
    async def body():
        async with asked(model()) as (live, _):
            sent = {"prompt": "ab", "use_beam_search": True, "max_tokens": 5}
            many = await post(live, PATH, sent | {"n": 4})
            few = await post(live, PATH, sent | {"n": 2, "best_of": 4, "temperature": 0})
            assert few["choices"] == many["choices"][:2]

    scenario(body)


@pytest.mark.parametrize("length", [1, 3, 64])
def test_with_a_beam_length_the_answer_is_that_of_the_search_that_settles(length):
    async def body():
        async with asked(model()) as (live, _):
            sent = {
                "prompt": "ab",
                "use_beam_search": True,
                "best_of": 4,
                "beam_length": length,
                "max_tokens": 6,
                "return_token_ids": True,
            }
            (choice,) = (await post(live, PATH, sent))["choices"]
            ends = frozenset(live.service.model.intake.tokenizer.end_ids)
            (wanted,) = expected(b"ab", SearchRules(4, 6, ends, beam_length=length))
            assert tuple(choice["token_ids"]) == wanted.tokens
            assert math.isclose(choice["score"], wanted.score, rel_tol=1e-5)

    scenario(body)


@pytest.mark.origin("ExLlama: beams with samplers and beam length, over HTTP")
def test_samplers_leave_the_candidates_of_a_search(monkeypatch):
    monkeypatch.setattr(Programs, "delete_weights", lambda _: None)  # other tests use them

    async def body():
        patient = Bounds(patience_seconds=300)  # programs may still have to be compiled
        async with asked(new_engine(), bounds=patient) as (live, _):
            sent = {
                "prompt": "ab",
                "use_beam_search": True,
                "n": 4,
                "max_tokens": 3,
                "ignore_eos": True,
                "return_token_ids": True,
            }

            async def found(**more):
                answer = await post(live, PATH, sent | more)
                return {tuple(one["token_ids"]): one["score"] for one in answer["choices"]}

            plain = await found()
            assert await found(temperature=0) == plain
            assert list(await found(top_k=1)) == [(await greedy(live))]  # one candidate a time
            hot = await found(temperature=2.0)
            assert max(hot.values()) < max(plain.values())  # flatter
            first = next(iter(plain))[0]
            banned = await found(logit_bias={str(first): -100}, n=1, best_of=4, beam_length=2)
            assert len(banned) == 1 and first not in next(iter(banned))

    async def greedy(live):
        asked = {"prompt": "ab", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        answer = await post(live, PATH, asked | {"return_token_ids": True})
        return tuple(answer["choices"][0]["token_ids"])

    scenario(body)


def test_a_search_is_one_request_in_the_log(caplog):
    caplog.set_level("INFO")

    async def body():
        async with asked(model()) as (live, _):
            await post(
                live, PATH, {"prompt": "ab", "use_beam_search": True, "n": 3, "max_tokens": 9}
            )
            await live.settled()

    scenario(body)
    (facts,) = [each.facts for each in caplog.records if each.message == "request"]
    assert facts["reason"] == "done"
    assert facts["generated"] > 9


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stream": True}, "stream"),
        ({"echo": True}, "echo"),
        ({"temperature": 0, "top_p": 0.5}, "temperature"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"n": 2, "beam_length": 2}, "n"),
        ({"length_penalty": 2, "beam_length": 2}, "length_penalty"),
        ({"beam_length": 0}, "beam_length"),
        ({"use_beam_search": False, "beam_length": 2}, "beam_length"),
        ({"stop": "a"}, "stop"),
        ({"logprobs": 1}, "logprobs"),
        ({"seed": 1}, "seed"),
        ({"best_of": 17}, "best_of"),
        ({"length_penalty": 11}, "length_penalty"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"use_beam_search": False, "length_penalty": 1}, "length_penalty"),
        ({"use_beam_search": False, "early_stopping": True}, "early_stopping"),
        ({"best_of": 16, "stop_token_ids": [1, 2, 3, 4]}, "best_of"),
    ],
)
def test_what_a_search_cannot_do_is_refused_by_name(more, param):
    async def body():
        async with asked(model()) as (live, _):
            sent = {"prompt": "ab", "use_beam_search": True, "max_tokens": 5} | more
            assert (await post(live, PATH, sent, 400))["error"]["param"] == param
            assert live.engine.ledger["accepted"] == 1

    scenario(body)


def test_a_search_that_is_too_dear_or_finds_no_room_is_refused():
    async def body():
        bounds = Bounds(queue_requests=2, request_tokens=100)
        async with asked(model(slots=1), bounds=bounds) as (live, _):
            sent = {"prompt": "ab", "use_beam_search": True, "n": 4, "max_tokens": 30}
            error = (await post(live, PATH, sent, 400))["error"]
            assert (error["param"], "beams come to 128" in error["message"]) == ("max_tokens", True)

    scenario(body)


def test_a_client_that_leaves_ends_the_search():
    async def body():
        async with asked(model()) as (live, _):
            sent = {
                "prompt": "ab",
                "use_beam_search": True,
                "n": 4,
                "max_tokens": 200,
                "ignore_eos": True,
            }
            with pytest.raises(TimeoutError):
                await live.http.post(
                    f"{live.url}{PATH}", json=sent, timeout=aiohttp.ClientTimeout(0.05)
                )
            await live.until(lambda: not live.service.figures()["open_requests"])
            await live.settled()
            before = live.engine.ledger["accepted"]
            await asyncio.sleep(0.05)
            assert live.engine.ledger["accepted"] == before < 600  # of 800

    scenario(body)
