"""`/explain`: what samplers did to each token, under the numbers asked for and under others."""

import asyncio
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxllama import explain
from jaxllama.errors import HttpError
from jaxllama.serve import recordings
from jaxllama.serve.answering.writing import explainable_knobs
from jaxllama.serve.recordings import MOST_OF_A_CLIENT, SECONDS_KEPT, Recordings
from jaxllama.testing import ScriptedEngine
from tests.serve.clients import HI, asked, post
from tests.serve.conftest import config, scenario
from tests.support import installed_samplers

USED = ("constraint", "top_k")
ASK = {"prompt": "a", "max_tokens": 2, "temperature": 1.0, "top_k": 1}


# Replays run hundreds of operations a few times each.
pytestmark = pytest.mark.usefixtures("quick_programs")


def engine():
    samplers = {name: installed_samplers()[name] for name in USED}
    size = config(candidates=32)
    return ScriptedEngine(lambda _: [98] * 20, config=size, samplers=samplers)


def test_each_token_is_explained_stage_by_stage():
    async def body():
        async with asked(engine()) as (live, _):
            found = await post(live, "/explain", ASK)
            assert (found["model"], found["text"], found["what_if"]) == ("scripted", "bb", None)
            assert [each["recorded"] for each in found["positions"]] == [98, 98]
            for each in found["positions"]:
                assert (each["token"], each["text"]) == (98, "b") and 0 <= each["chance"] < 1
                stages = {stage["name"]: stage for stage in each["stages"]}
                assert list(stages) == ["model", "temperature", "top_k"]
                assert stages["model"]["p"] == pytest.approx(1 / 2, rel=1e-4)
                last = {"name": "top_k", "kept": 1, "rank": 0, "p": 1.0}
                assert stages["top_k"].items() >= last.items()
                assert stages["top_k"]["removed"] == pytest.approx(1 / 2, rel=1e-4)

    scenario(body)


def test_only_the_operations_of_few_of_the_latest_samplers_are_kept(monkeypatch):
    """Else clients fill the memory: each list of samplers compiles operations of its own."""
    cleared = []
    monkeypatch.setattr(explain, "LATEST", explain.LatestSamplers())
    monkeypatch.setattr(explain, "MOST_SAMPLERS", 3)  # the model, the temperature and one sampler
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1))

    async def body():
        async with asked(engine()) as (live, _):
            counts = []
            for knobs in ({"top_k": 1}, {"top_k": 0}, {"top_k": 2}):
                await post(live, "/explain", ASK | knobs)
                counts.append(len(cleared))
            explain.LATEST.note(["model", "temperature", "top_p"], 0)
            assert [*counts, len(cleared)] == [1, 1, 1, 2]

    scenario(body)


def test_other_numbers_are_tried_on_the_same_logits():
    async def body():
        async with asked(engine()) as (live, _):
            sent = {"messages": HI, "max_tokens": 1, "top_k": 1, "what_if": {"top_k": 2}}
            found = await post(live, "/explain", sent)
            before, after = (found[name][0] for name in ("positions", "what_if"))
            assert before["stages"][-1]["kept"] == 1
            assert after["stages"][-1]["kept"] == 2
            share = {98: 2 / 3, 99: 1 / 3}[after["token"]]
            assert after["stages"][-1]["p"] == pytest.approx(share, rel=1e-4)
            assert (before["recorded"], after["chance"]) == (98, before["chance"])
            assert live.engine.ledger["accepted"] == 2  # the warm-up, and one answer

    scenario(body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"what_if": {"top_kk": 1}}, "what_if.top_kk"),
        ({"what_if": {"top_k": -1}}, "what_if.top_k"),
        ({"what_if": {"max_tokens": 1}}, "what_if.max_tokens"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"regex": "b"}, None),
        ({"messages": HI}, "messages"),
    ],
)
def test_what_cannot_be_explained_is_refused(fields, param):
    async def body():
        async with asked(engine()) as (live, _):
            error = (await post(live, "/explain", ASK | fields, 400))["error"]
            assert error["param"] == param
            await live.settled()

    scenario(body)


def test_an_explanation_can_be_cancelled_and_left():
    async def body():
        async with asked(engine()) as (live, _):
            gate, prepare = threading.Event(), live.service.preparation
            others = [  # replays of other clients
                asyncio.create_task(prepare.do(client, gate.wait, is_dear=True))
                for client in ("other", "another")
            ]
            asking = asyncio.create_task(post(live, "/explain", ASK, 409))
            leaving = asyncio.create_task(post(live, "/explain", ASK))
            await live.until(lambda: prepare.dear.waiting == 2)
            leaving.cancel()
            await live.until(lambda: len(live.service._open) == 1)
            (id_,) = live.service._open
            assert await live.status(f"/v1/requests/{id_}", "DELETE") == 200
            assert (await asking)["error"]["code"] == "cancelled"
            assert prepare.dear.waiting == 0
            gate.set()
            await asyncio.gather(*others)
            assert (await post(live, "/explain", ASK))["text"] == "bb"
            await live.settled()

    scenario(body)


@pytest.mark.parametrize(
    ("path", "prompt"),
    [("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HI})],
)
def test_a_completion_or_a_chat_is_explained_if_it_asks(path, prompt):
    async def body():
        async with asked(engine()) as (live, _):
            sent = {**prompt, "max_tokens": 2, "temperature": 1.0, "top_k": 1}
            found = await post(live, path, sent | {"explain": True})
            assert [each["recorded"] for each in found["explanation"]] == [98, 98]
            assert found["explanation"][0]["stages"][-1]["kept"] == 1
            assert "explanation" not in await post(live, path, sent)

    scenario(body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "explain"),
        ({"n": 2}, "explain"),
        ({"prompt": ["a", "b"]}, "explain"),
        ({"max_tokens": 0, "echo": True}, "explain"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"regex": "b"}, None),
    ],
)
def test_a_completion_that_cannot_be_explained_is_refused(fields, param):
    async def body():
        async with asked(engine()) as (live, _):
            sent = ASK | {"explain": True} | fields
            error = (await post(live, "/v1/completions", sent, 400))["error"]
            assert error["param"] == param
            await live.settled()

    scenario(body)


def test_an_explained_answer_is_short_where_nobody_says_how_short():
    assert explainable_knobs({"top_k": 1}, stream=None, answers=1) == {"top_k": 1, "max_tokens": 64}


def test_a_kept_recording_is_drawn_again_without_the_model():
    async def body():
        async with asked(engine()) as (live, _):
            sent = ASK | {"top_k": 3, "keep": True, "candidates": 2}
            found = await post(live, "/explain", sent)
            first = found["positions"][0]["stages"]
            assert first[-1]["top"][0]["text"] == "b"
            assert len(first[0]["top"]) == 2 and first[0]["top"][0]["token"] == 98
            ask = {"recording": found["recording"], "what_if": {"top_k": 1}, "candidates": 9}
            again = await post(live, "/explain/replay", ask | {"position": 1})
            (only,) = again["positions"]
            assert only["chance"] == found["positions"][1]["chance"]
            assert only["stages"][-1]["kept"] == len(only["stages"][-1]["top"]) == 1
            assert len((await post(live, "/explain/replay", ask))["positions"]) == 2
            refused = await post(live, "/explain/replay", ask | {"position": 2}, status=400)
            assert refused["error"]["param"] == "position"
            wrong = ask | {"what_if": {"top_k": -1}}
            refused = await post(live, "/explain/replay", wrong, status=400)
            assert refused["error"]["param"] == "what_if.top_k"
            assert live.engine.ledger["accepted"] == 2  # the warm-up, and one answer

    scenario(body)


def test_a_recording_is_its_owners_and_is_forgotten_after_a_while():
    now = [0.0]
    kept = Recordings(lambda: now[0])
    one = SimpleNamespace(logits=np.zeros(4, np.float32))
    id_ = kept.keep("a", one)
    assert kept.get(id_, "a") is one
    with pytest.raises(HttpError, match="no recording"):
        kept.get(id_, "b")
    now[0] = SECONDS_KEPT + 1
    with pytest.raises(HttpError, match="no recording"):
        kept.get(id_, "a")


def test_recordings_take_bounded_memory_and_a_client_keeps_few(monkeypatch):
    kept = Recordings(lambda: 0.0)
    one = SimpleNamespace(logits=np.zeros(25, np.float32))
    ids = [kept.keep("a", one) for _ in range(MOST_OF_A_CLIENT + 2)]
    other = kept.keep("b", one)
    with pytest.raises(HttpError):
        kept.get(ids[1], "a")
    assert kept.get(ids[2], "a") is kept.get(other, "b") is one
    monkeypatch.setattr(recordings, "MOST_BYTES", 350)
    kept.keep("c", one)
    assert kept.bytes <= 350
