"""Our own additions: tokens, templates, scores, labels, and what is installed."""

import asyncio
import math

import openai
import pytest

from jaxllama.limits import LIMITS
from jaxllama.testing import ScriptedEngine
from tests.serve.clients import HI, asked, fetch, plain_intake, post, saying
from tests.serve.conftest import Gate, config, intake_for, scenario
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


@pytest.mark.parametrize(
    ("sent", "tokens"),
    [
        ({"prompt": "a<s>"}, [256, 97, 256]),  # vLLM's defaults
        ({"prompt": "a<s>", "add_special_tokens": False}, [97, 256]),
        ({"prompt": "a", "add_special_tokens": True}, [256, 97]),
        ({"content": "a<s>"}, [97, 256]),  # llama.cpp's defaults
        ({"content": "a<s>", "parse_special": False}, [97, 60, 115, 62]),
        ({"content": "a", "add_special": True}, [256, 97]),
        ({"text": "a<s>"}, [256, 97, 60, 115, 62]),
    ],
)
def test_texts_are_read_as_the_server_reads_them_whose_name_they_have(sent, tokens):
    async def body():
        engine = saying(b"x")
        async with asked(engine, intake=intake_for(engine, adds_begin=True)) as (live, _):
            found = await post(live, "/tokenize", {**sent, "model": "scripted"})
            assert found["tokens"] == tokens
            assert (found["count"], found["max_model_len"]) == (len(tokens), 256)
            assert ("pieces" in found) == ("text" in sent)

    scenario(body)


def test_tokens_are_spelled_in_vllms_and_in_llama_cpps_way():
    async def body():
        async with asked() as (live, _):
            sent = {"prompt": "aé", "return_token_strs": True}
            assert (await post(live, "/tokenize", sent))["token_strs"] == ["a", "\ufffd", "\ufffd"]
            found = await post(live, "/tokenize", {"content": "aé", "with_pieces": True})
            assert found["tokens"] == [
                {"id": 97, "piece": "a"},
                {"id": 0xC3, "piece": [0xC3]},
                {"id": 0xA9, "piece": [0xA9]},
            ]
            found = await post(live, "/detokenize", {"tokens": [97], "model": "scripted"})
            assert found == {"text": "a", "prompt": "a", "content": "a"}

    scenario(body)


def test_a_conversation_is_tokenized_as_a_chat_reads_it():
    async def body():
        async with asked() as (live, _):
            for more in ({}, {"add_generation_prompt": False}):
                sent = {"messages": HI, **more}
                shown = await post(live, "/apply-template", sent)
                assert (await post(live, "/tokenize", sent))["tokens"] == shown["tokens"]

    scenario(body)


def test_the_tokenizer_is_described_as_vllm_describes_it():
    async def body():
        engine = saying(b"x")
        intake = intake_for(engine, adds_begin=True, template="{{ messages }}")
        async with asked(engine, intake=intake) as (live, _):
            found = await fetch(live, "/tokenizer_info")
            assert (found["bos_token"], found["eos_token"]) == ("<s>", "</s>")
            assert found["chat_template"] == "{{ messages }}"
            assert found["tokenizer_class"] and found["add_bos_token"] is True
            sent = {"prompt": found["eos_token"], "add_special_tokens": False}
            assert (await post(live, "/tokenize", sent))["tokens"] == [257]

    scenario(body)


def test_a_router_is_told_the_model_and_the_size_of_a_server():
    async def body():
        async with asked(saying(b"x")) as (live, _):
            found = await fetch(live, "/server_info")
            assert found["served_model_name"] == found["model_path"] == "scripted"
            assert (found["max_running_requests"], found["context_length"]) == (4, 256)
            assert found["max_total_num_tokens"] == 4 * 256
            assert (await fetch(live, "/get_model_info"))["model_path"] == "scripted"

    scenario(body)


def test_slots_and_properties_are_the_engines_own():
    async def body():
        engine = saying(b"x" * 100)
        async with asked(engine) as (live, _):
            found = await fetch(live, "/props")
            assert found["total_slots"] == 4
            settings = found["default_generation_settings"]
            assert settings["n_ctx"] == 256
            assert settings["params"]["temperature"] == 1.0
            for name in ("n_predict", "max_tokens", "seed"):
                assert settings["params"][name] == -1
            assert [one["is_processing"] for one in await fetch(live, "/slots")] == [False] * 4
            gate = Gate(engine)
            sent = {"prompt": "secret", "max_tokens": 50, "temperature": 0.5}
            asking = asyncio.create_task(post(live, "/v1/completions", sent))
            await gate.advance(lambda: engine.counts["running"] == 1)
            for _ in range(3):
                gate.let()
            await live.until(lambda: gate.steps >= 3)
            slots = await fetch(live, "/slots")
            (busy,) = [one for one in slots if one["is_processing"]]
            assert (busy["n_ctx"], busy["n_prompt_tokens"]) == (256, 6)
            assert busy["params"]["temperature"] == 0.5
            told = busy["next_token"]
            assert told["n_decoded"] > 0 and told["n_decoded"] + told["n_remain"] == 50
            assert "secret" not in str(slots) and "115" not in str(slots)
            more = [asyncio.create_task(post(live, "/v1/completions", sent)) for _ in range(3)]
            assert await live.status("/slots?fail_on_no_slot=1") == 200
            await gate.advance(lambda: engine.counts["slots"] == 4)
            assert await live.status("/slots?fail_on_no_slot=1") == 503
            gate.open()
            await asyncio.gather(asking, *more)

    scenario(body)


def test_a_model_answers_to_its_names_and_by_the_one_it_was_asked_by():
    async def body():
        async with asked(aliases=frozenset({"tiny", "tiny.gguf"})) as (live, client):
            assert [one.id for one in (await client.models.list()).data] == ["scripted"]
            assert (await client.models.retrieve("tiny.gguf")).id == "tiny.gguf"
            for name in ("scripted", "tiny", None):
                named = {} if name is None else {"model": name}
                for path, sent in (
                    ("/v1/chat/completions", {"messages": HI}),
                    ("/v1/completions", {"prompt": "a"}),
                    ("/v1/responses", {"input": "a"}),
                    ("/v1/embeddings", {"input": "a"}),
                    ("/score", {"prompt": "a", "continuations": ["b"]}),
                    ("/classify", {"prompt": "a", "labels": ["b"]}),
                ):
                    found = await post(live, path, {**sent, **named})
                    assert found["model"] == (name or "scripted")
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("another")

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


def test_many_texts_and_questions_are_classified_in_one_request():
    def answer(prompt):
        return b"y" if bytes(prompt).startswith(b"x") == (b"1" in bytes(prompt)) else b"n"

    async def body():
        async with asked(ScriptedEngine(answer, config=config())) as (live, _):
            sent = {"texts": ["xa", "b"], "questions": ["1?", "2?"], "labels": ["y", "n"]}
            found = await post(live, "/classify", sent)
            assert "label" not in found
            told = [(one["text"], one["question"], one["label"]) for one in found["results"]]
            assert told == [(0, 0, "y"), (0, 1, "n"), (1, 0, "n"), (1, 1, "y")]
            one = await post(live, "/classify", {"prompt": "xa1?", "labels": ["y", "n"]})
            assert found["results"][0]["labels"] == one["labels"]
            sent = {"prompt": "xa", "questions": ["1?"], "labels": ["y", "n"]}
            assert (await post(live, "/classify", sent))["results"] == found["results"][:1]

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
        engine.programs.prefill = lambda state, slot, ids, start, count, *more: (
            sent.append(count) or prefill(state, slot, ids, start, count, *more)
        )
        async with asked(engine) as (live, _):
            await post(live, "/classify", {"prompt": "a" * 100, "labels": ["b", "c", "d"]})
            assert sum(sent) == 99

    scenario(body)


REFUSED = [
    ("/tokenize", {}, "text", "nothing given to tokenize; expected one of text, prompt"),
    ("/tokenize", {"text": "a", "prompt": "a"}, "text", "text and prompt given to tokenize"),
    ("/tokenize", {"text": "a", "model": "gpt-9"}, None, "'gpt-9' does not exist"),
    ("/tokenize", {"text": 1}, "text", "Expected `str | null`"),
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
    ("/classify", {"texts": [], "labels": ["b"]}, "texts", "is empty"),
    ("/classify", {"prompt": "a", "texts": ["b"], "labels": ["b"]}, "texts", "either"),
    ("/classify", {"messages": HI, "questions": ["b"], "labels": ["b"]}, "messages", "without"),
    ("/classify", {"texts": ["a"] * 257, "labels": ["b"]}, "texts", "at most 256"),
    (
        "/classify",
        {"texts": ["a"] * 256, "questions": ["b"] * 64, "labels": ["b"]},
        "queries",
        "at most 4096",
    ),
]


def test_what_is_wrong_is_named():
    async def body():
        async with asked(strict=True) as (live, _):
            for path, sent, param, words in REFUSED:
                status = 404 if "model" in sent else 400
                error = (await post(live, path, sent, status))["error"]
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
