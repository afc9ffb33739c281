"""The RLLaMA dialect: lines with probabilities, whole distributions, bounds of its server."""

import asyncio
import os
import signal

import pytest

from jaxllama.serve.dialects.rllama.pieces import spell
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import Gate, config, running, scenario
from tests.serve.dialects import everyone, lines
from tests.support import installed_samplers

PATH = "/rllama/v1/inference"


def serving(answer=b"Hi!", *, options=(), **settings):
    size = config(candidates=32, context=256)
    engine = ScriptedEngine(lambda _: answer, config=size, samplers=installed_samplers())
    dialects = everyone(dialect_options=tuple(f"rllama.{each}" for each in options))
    return running(engine, dialects=dialects, **settings)


async def ask(live, status=200, path=PATH, headers=None, **body):
    async with live.http.post(f"{live.url}{path}", json=body, headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.text()


@pytest.mark.origin("RLLaMA: lines with probabilities, `is_end_token`, `stop_at_end_token`")
def test_every_token_is_a_line_and_the_end_token_says_so():
    async def body():
        async with serving(b"a \n") as live:
            found = lines(await ask(live, prompt="hi"))
            assert [[*line] for line in found] == [["a"], ["\u2581"], ["<0x0A>"], ["</s>"]]
            values = [value for line in found for value in line.values()]
            assert [value.get("is_end_token") for value in values] == [None, None, None, True]
            # The scripted engine gives its token half of the probability.
            assert [value["p"] for value in values] == pytest.approx([0.5] * 4)
            more = lines(await ask(live, prompt="hi", stop_at_end_token=False, max_new_tokens=6))
            assert len(more) == 6
            assert not any("is_end_token" in value for line in more for value in line.values())

    scenario(body)


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.origin("RLLaMA: `no_token_sampling`, whole distributions in bounded memory")
def test_without_sampling_every_token_has_its_probability(count):
    async def body():
        async with serving(b"x" * 50) as live:
            found = lines(
                await ask(live, prompt="hi", no_token_sampling=True, max_new_tokens=count)
            )
            assert len(found) == count
            for line in found:
                assert list(line) == sorted(line)
                assert sum(value["p"] for value in line.values()) == pytest.approx(1, abs=1e-6)
                assert max(line, key=lambda piece: line[piece]["p"]) == "x"
                ends = [piece for piece, value in line.items() if value.get("is_end_token")]
                assert ends == ["</s>", "<|im_end|>"]
                assert "<0x0A>" in line and "\u2581" in line

    scenario(body)


@pytest.mark.origin("RLLaMA: clamps of the length")
def test_the_length_is_clamped_to_the_operators():
    async def body():
        async with serving(b"x" * 300, options=("max_seq_len=10",)) as live:
            assert len(lines(await ask(live, prompt="hi", max_seq_len=500))) == 8
            assert len(lines(await ask(live, prompt="hi", max_seq_len=5))) == 3
            assert await ask(live, prompt="longer than ten") == ""

    scenario(body)


@pytest.mark.origin("RLLaMA: JSON instead of lines")
def test_a_client_that_accepts_json_gets_an_array():
    async def body():
        async with serving() as live:
            headers = {"Accept": "application/json"}
            url = f"{live.url}{PATH}"
            async with live.http.post(url, json={"prompt": "hi"}, headers=headers) as response:
                assert response.content_type == "application/json"
                assert len(await response.json()) == 4
            long = {"prompt": "x" * 256, "max_seq_len": 9}
            async with live.http.post(url, json=long, headers=headers) as response:
                assert await response.json() == []

    scenario(body)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "Invalid JSON."),
        ({"prompt": 5}, "Invalid JSON."),
        ({"prompt": "hi", "top_k": 0}, "Top-k must be greater than 0."),
        ({"prompt": "hi", "top_p": 7.0}, "Top-p must be a number."),
        ({"prompt": "hi", "temperature": 1e9}, "Temperature must be a number."),
        ({"prompt": "hi", "repetition_penalty": -1.0}, "Repetition penalty must be a number."),
    ],
)
@pytest.mark.origin("RLLaMA: errors")
def test_errors_begin_with_rllamas_sentence(body, sentence):
    async def test():
        async with serving() as live:
            assert (await ask(live, 400, **body)).startswith(f"{sentence}\n")

    scenario(test)


@pytest.mark.origin("RLLaMA: path of the route")
def test_the_path_is_an_option():
    async def body():
        async with serving(options=("path=/infer",)) as live:
            assert await ask(live, path="/infer", prompt="hi")
            await ask(live, 404, prompt="hi")

    scenario(body)


@pytest.mark.origin("RLLaMA: bound of concurrent inferences")
def test_inferences_beyond_the_bound_wait_while_others_stream():
    async def body():
        async with serving(options=("max_concurrent_inferences=1",)) as live:
            gate = Gate(live.engine)
            first = asyncio.create_task(ask(live, prompt="hi"))
            await live.until(lambda: len(live.service._open) == 1)
            second = asyncio.create_task(ask(live, prompt="hi"))
            await asyncio.sleep(0.05)
            assert len(live.service._open) == 1
            gate.open()
            assert await first == await second

    scenario(body)


@pytest.mark.origin("RLLaMA: end after one query")
def test_a_server_for_one_query_ends_after_it(monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))

    async def body():
        async with serving(options=("exit_after_one_query=true",)) as live:
            await ask(live, 400, prompt=1)
            assert killed == []
            await ask(live, prompt="hi")
            await live.until(lambda: killed)

    scenario(body)
    assert killed == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize(
    ("piece", "spelling"),
    [
        (b" the", "\u2581the"),
        (b"\n", "<0x0A>"),
        (b"\xe2\x82", "<0xE2><0x82>"),
        ("\u20ac".encode(), "\u20ac"),
    ],
)
def test_tokens_are_spelt_as_sentencepiece_does(piece, spelling):
    assert spell(piece) == spelling
