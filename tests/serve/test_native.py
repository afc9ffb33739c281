"""Our own additions: tokens, templates, scores, labels, and what is installed."""

import math

import pytest

from jaxllama.limits import LIMITS
from jaxllama.testing import ScriptedEngine
from tests.serve.clients import HI, asked, plain_intake, post, saying
from tests.serve.conftest import config, scenario
from tests.support import installed_samplers

LN2 = math.log(2)


def test_text_becomes_tokens_and_text_again():
    async def body():
        async with asked() as (live, _):
            found = await post(live, "/tokenize", {"text": "aé<s>"})
            assert found["tokens"] == [97, 0xC3, 0xA9, 60, 115, 62]
            assert found["count"] == 6
            assert found["pieces"][:2] == ["a", "\ufffd"]
            again = await post(live, "/detokenize", {"tokens": found["tokens"]})
            assert again["text"] == "aé<s>"

    scenario(body)


def test_control_tokens_are_read_where_that_is_asked():
    async def body():
        async with asked() as (live, _):
            found = await post(live, "/tokenize", {"text": "a<s>", "special": True})
            assert found["tokens"] == [97, 256]
            found = await post(live, "/tokenize", {"text": "a", "begin": True})
            assert found["tokens"] == [256, 97]
            assert (await post(live, "/detokenize", {"tokens": [256, 97]}))["text"] == "a"
            sent = {"tokens": [256, 97], "special": True}
            assert (await post(live, "/detokenize", sent))["text"] == "<s>a"

    scenario(body)


def test_a_conversation_is_shown_as_the_model_reads_it():
    async def body():
        async with asked() as (live, _):
            sent = {"messages": [{"role": "user", "content": "<s>"}]}
            found = await post(live, "/apply-template", sent)
            assert found["prompt"] == "<|im_start|>user\n<s><|im_end|>\n<|im_start|>assistant\n"
            assert 256 not in found["tokens"]  # what a user writes is no control token
            assert found["tokens"].count(258) == 2
            closed = await post(live, "/apply-template", {**sent, "add_generation_prompt": False})
            assert closed["prompt"].endswith("<|im_end|>\n")

    scenario(body)


def test_a_score_is_the_sum_over_a_continuation():
    async def body():
        async with asked(ScriptedEngine(lambda _: [98], config=config())) as (live, _):
            sent = {"prompt": "a", "continuations": ["b", "bc", [98, 98]]}
            found = (await post(live, "/score", sent))["scores"]
            assert [one["logprob"] for one in found] == pytest.approx([-LN2, -3 * LN2, -2 * LN2])
            assert found[1]["tokens"] == [98, 99]
            assert found[1]["token_logprobs"] == pytest.approx([-LN2, -2 * LN2])

    scenario(body)


def test_labels_have_probabilities_that_sum_to_one():
    async def body():
        async with asked(ScriptedEngine(lambda _: [98], config=config())) as (live, _):
            found = await post(live, "/classify", {"messages": HI, "labels": ["b", "cb", "d"]})
            assert found["label"] == "b"
            shares = [one["probability"] for one in found["labels"]]
            assert shares == pytest.approx([4 / 6, 1 / 6, 1 / 6])
            assert [one["label"] for one in found["labels"]] == ["b", "cb", "d"]

    scenario(body)


def test_long_labels_are_not_at_a_disadvantage_if_that_is_asked():
    async def body():
        async with asked(ScriptedEngine(lambda _: [98], config=config())) as (live, _):
            sent = {"prompt": "a", "labels": ["c", "bbbbbbbb"]}
            assert (await post(live, "/classify", sent))["label"] == "c"
            sent["length_normalize"] = True
            found = await post(live, "/classify", sent)
            assert found["label"] == "bbbbbbbb"
            assert found["labels"][1]["probability"] == pytest.approx(2 / 3)

    scenario(body)


def test_the_prompt_of_all_labels_is_computed_once():
    async def body():
        engine = saying(b"x")
        sent, prefill = [], engine.programs.prefill
        engine.programs.prefill = lambda state, slot, ids, start, count: (
            sent.append(count) or prefill(state, slot, ids, start, count)
        )
        async with asked(engine) as (live, _):
            await post(live, "/classify", {"prompt": "a" * 100, "labels": ["b", "c", "d"]})
            assert sum(sent) == 99

    scenario(body)


REFUSED = [
    ("/tokenize", {}, None, "required field `text`"),
    ("/tokenize", {"text": 1}, "text", "Expected `str`"),
    ("/tokenize", {"text": "x", "bos": True}, "bos", "unknown parameter"),
    ("/detokenize", {"tokens": [-1]}, "prompt", "-1"),
    ("/detokenize", {"tokens": ["a"]}, "tokens[0]", "Expected `int`"),
    ("/apply-template", {"messages": []}, "messages", "messages is empty"),
    ("/score", {"continuations": ["a"]}, "prompt", "either prompt or messages"),
    ("/score", {"prompt": "a", "continuations": []}, "continuations", "is empty"),
    ("/score", {"prompt": "a", "continuations": [""]}, "continuations", "an empty one"),
    ("/score", {"prompt": "", "continuations": ["a"]}, "prompt", "prompt is empty"),
    ("/score", {"prompt": "a", "continuations": ["b"] * 257}, "continuations", "at most 256"),
    ("/score", {"prompt": "a" * 250, "continuations": ["b" * 9]}, None, "259 tokens"),
    ("/classify", {"prompt": "a", "messages": HI, "labels": ["b"]}, "prompt", "either"),
    ("/classify", {"prompt": "a", "labels": ["b", "b"]}, "labels", "twice"),
    ("/classify", {"prompt": "a", "labels": []}, "labels", "is empty"),
]


def test_what_is_wrong_is_named():
    async def body():
        async with asked() as (live, _):
            for path, sent, param, words in REFUSED:
                error = (await post(live, path, sent, 400))["error"]
                assert error["param"] == param, (sent, error)
                assert words in error["message"], error

    scenario(body)


def test_everything_installed_is_listed_with_its_bounds():
    async def body():
        samplers = installed_samplers()
        engine = ScriptedEngine(lambda _: b"ok", config=config(candidates=32), samplers=samplers)
        async with asked(engine) as (live, _):
            async with live.http.get(f"{live.url}/v1/plugins") as response:
                found = await response.json()
            assert {one["name"] for one in found["samplers"]} == set(samplers)
            (top_p,) = [one for one in found["samplers"] if one["name"] == "top_p"]
            kinds = {one["name"]: one["kind"] for one in found["samplers"]}
            assert top_p["kind"] == "filter"
            assert (kinds["repetition"], kinds["xtc"]) == ("adjuster", "shaper")
            assert top_p["doc"]
            knob = top_p["knobs"][0]
            assert (knob["name"], knob["type"], knob["off"]) == ("top_p", "float", 1.0)
            assert (knob["low"], knob["high"], knob["width"]) == (0.0, 1.0, None)
            assert [one["name"] for one in found["formats"] if one["chosen"]] == ["chatml"]
            assert [one["name"] for one in found["core"]] == list(LIMITS)
            assert knob["recommended"] is None

    scenario(body)


def test_recommended_sampling_is_listed_with_the_model_and_its_knobs():
    async def body():
        samplers = installed_samplers()
        engine = ScriptedEngine(lambda _: b"ok", config=config(candidates=32), samplers=samplers)
        intake = plain_intake(engine)
        intake.defaults = {"temperature": 0.2, "top_p": 0.9}
        async with asked(engine, intake=intake) as (live, _):
            async with live.http.get(f"{live.url}/v1/models") as response:
                (model,) = (await response.json())["data"]
            async with live.http.get(f"{live.url}/v1/plugins") as response:
                found = await response.json()
        assert model["sampling_defaults"] == {"temperature": 0.2, "top_p": 0.9}
        knobs = {knob["name"]: knob for one in found["samplers"] for knob in one["knobs"]}
        assert (knobs["top_p"]["recommended"], knobs["top_p"]["off"]) == (0.9, 1.0)
        (heat,) = [one for one in found["core"] if one["name"] == "temperature"]
        assert (heat["recommended"], heat["default"]) == (0.2, 1.0)

    scenario(body)
