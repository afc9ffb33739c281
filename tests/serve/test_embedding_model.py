"""An encoder served beside the model: chosen by name, in the client's turn, beside the slots."""

import asyncio
import base64
import math

import numpy as np
import openai
import pytest

from jaxllama import encoder as module
from jaxllama.encoder import Encoder
from jaxllama.errors import ConfigError
from jaxllama.service import Model, ServedEncoder
from tests.serve.clients import HI, MODEL, asked, fetch, post, saying
from tests.serve.conftest import Gate, intake_for, scenario, scripted
from tests.support import KEPT
from tests.weights.encoder_writer import LONGEST, WIDTH, write_encoder

NAME = "bert"
PATH = "/v1/embeddings"
KEYS = ("many", "one")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("served") / NAME)


@pytest.fixture
def encoder(folder, monkeypatch):
    """Loaded for each server, which closes it."""
    monkeypatch.setattr(module, "cache_folder", lambda: KEPT / "encoders")
    return ServedEncoder(NAME, Encoder.load(folder), frozenset(["bert-alias"]))


def test_the_model_field_chooses_the_encoder(encoder):
    expected = encoder.encoder.encode(["the cat", "a market"])

    async def body():
        async with asked(encoder=encoder) as (live, client):
            answer = await client.embeddings.create(model=NAME, input=["the cat", "a market"])
            assert answer.model == NAME and [one.index for one in answer.data] == [0, 1]
            found = [one.embedding for one in answer.data]
            np.testing.assert_allclose(found, expected, atol=1e-6)
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == 8
            alias = await post(live, PATH, {"model": "bert-alias", "input": "the cat"})
            assert alias["model"] == "bert-alias" and len(alias["data"][0]["embedding"]) == WIDTH
            for model in (MODEL, None):
                own = await post(live, PATH, {"model": model, "input": "the cat"})
                assert own["model"] == MODEL and len(own["data"][0]["embedding"]) != WIDTH
            assert live.engine.ledger["accepted"] == 1

    scenario(body)


def test_base64_and_dimensions_are_openai_s(encoder):
    async def body():
        async with asked(encoder=encoder) as (live, _):
            sent = {"model": NAME, "input": "the cat", "dimensions": 6}
            numbers = (await post(live, PATH, sent))["data"][0]["embedding"]
            assert len(numbers) == 6 and math.isclose(np.linalg.norm(numbers), 1, rel_tol=1e-5)
            coded = await post(live, PATH, sent | {"encoding_format": "base64"})
            decoded = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
            assert decoded.tolist() == pytest.approx(numbers)

    scenario(body)


REFUSED = [
    ({"input": "cat " * LONGEST}, None, f"32 tokens; bert reads at most {LONGEST - 2}"),
    ({"dimensions": WIDTH + 1}, "dimensions", f"have {WIDTH} numbers"),
    ({"dimensions": 0}, "dimensions", "must lie in"),
    ({"input": ""}, "input", "non-empty"),
    ({"input": []}, "input", "empty"),
    ({"input": ["a"] * 2049}, "inputs", "2049 entries; at most 2048"),
    ({"input": "x" * 131073}, "input", "at most 131072"),
    ({"input": [10**6]}, "input", "token 1000000"),
    ({"pooling": "last"}, "pooling", "not supported"),
    ({"prompt_name": "x"}, "prompt_name", "'query', 'passage'"),
    ({"model": None, "truncate": True}, "truncate", "not supported"),
    ({"model": MODEL, "prompt_name": "query"}, "prompt_name", "not supported"),
    ({"model": MODEL, "dimensions": 3}, "dimensions", "cannot be cut"),
]


def test_what_cannot_be_embedded_is_refused_by_name(encoder):
    async def body():
        async with asked(encoder=encoder) as (live, _):
            for fields, param, words in REFUSED:
                sent = {"model": NAME, "input": "cat", **fields}
                error = (await post(live, PATH, sent, 400))["error"]
                assert error["param"] == param, (fields, error)
                assert words in error["message"], error

    scenario(body)


def test_a_long_text_is_cut_and_a_prompt_put_before_it_if_that_is_asked_for(encoder):
    cut = encoder.encoder.encode("cat " * (LONGEST - 2))
    prompted = encoder.encoder.encode("find: cat")

    async def body():
        async with asked(encoder=encoder) as (live, _):
            for sent, expected in (
                ({"input": "cat " * LONGEST, "truncate": True}, cut),
                ({"input": "cat", "prompt_name": "query"}, prompted),
            ):
                answer = await post(live, PATH, {"model": NAME, **sent})
                found = answer["data"][0]["embedding"]
                np.testing.assert_allclose(found, expected, atol=1e-6)

    scenario(body)


def test_both_models_are_listed_and_the_encoder_only_makes_vectors(encoder):
    async def body():
        async with asked(encoder=encoder) as (live, client):
            first, second = (await client.models.list()).data
            assert (first.id, second.id) == (MODEL, NAME)
            card = await client.models.retrieve("bert-alias")
            assert (card.context_length, card.dimensions) == (LONGEST, WIDTH)
            with pytest.raises(openai.NotFoundError, match="only makes vectors"):
                await client.chat.completions.create(model=NAME, messages=HI)
            document = await fetch(live, "/openapi.json")
            schemas = document["components"]["schemas"]
            for body_, listed in (("EmbeddingBody", True), ("ChatBody", False)):
                names = schemas[body_]["properties"]["model"]["enum"]
                assert MODEL in names and (NAME in names) == listed

    scenario(body)


def test_a_name_that_both_models_have_is_refused(encoder):
    engine = scripted()
    with pytest.raises(ConfigError, match="both named 'bert'"):
        Model(NAME, engine, intake_for(engine), encoder=encoder)


def test_vectors_come_while_every_slot_is_busy_and_in_the_client_s_turn(encoder):
    async def body():
        engine = saying(b"x" * 4000, slots=1, context=4096)
        async with asked(engine, encoder=encoder, api_keys=KEYS) as (live, _):
            gate = Gate(engine)

            def send(path, key, **sent):
                head = {"Authorization": f"Bearer {key}"}
                return asyncio.create_task(live.status(path, "POST", json=sent, headers=head))

            talk = send("/v1/completions", "many", prompt="a", max_tokens=4000)
            await gate.advance(lambda: engine.counts["running"] == 1)
            flood = [send(PATH, "many", model=NAME, input=["cat " * 29] * 300) for _ in range(2)]
            queue = live.service.queue
            await live.until(lambda: queue.items + queue.running >= 3)
            await gate.advance(lambda: queue.running >= 2)
            one = send(PATH, "one", model=NAME, input="the cat")
            await gate.advance(one.done)
            assert await one == 200
            assert not talk.done() and not any(each.done() for each in flood)
            gate.open()
            assert await asyncio.gather(talk, *flood) == [200] * 3

    scenario(body)
