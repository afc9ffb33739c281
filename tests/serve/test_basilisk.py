"""The basilisk dialect: a raw secret, both names of the penalties, marks for special tokens."""

import json

import pytest

from jaxllama.errors import ConfigError
from jaxllama.serve.dialects.basilisk.inferring import BasiliskInferBody, BasiliskInferring
from jaxllama.serve.dialects.basilisk.options import BasiliskDefaults
from jaxllama.testing import ScriptedEngine
from jaxllama.testing.byte_tokenizer import BEGIN_ID, END_ID
from tests.serve.conftest import config, running, scenario
from tests.serve.dialects import everyone
from tests.support import installed_samplers


def serving(answer=b"one\ntwo", *, options=(), **settings):
    script = answer if callable(answer) else (lambda _: answer)
    size = config(candidates=32, context=1024)
    engine = ScriptedEngine(script, config=size, samplers=installed_samplers())
    dialects = everyone(dialect_options=tuple(f"basilisk.{each}" for each in options))
    return running(engine, dialects=dialects, **settings)


async def post(live, path, body, status=200):
    async with live.http.post(f"{live.url}/basilisk/{path}", json=body) as response:
        assert response.status == status, await response.text()
        return await response.json()


@pytest.mark.origin("basilisk: infer with tokens, fragments and stop reason")
def test_an_answer_has_its_tokens_their_texts_and_the_reason_of_its_end():
    async def body():
        async with serving() as live:
            found = await post(live, "infer", {"prompt": " hi "})
            assert found == {
                "text": "one",
                "tokens": list(b"one\n"),
                "fragments": ["o", "n", "e", "\n"],
                "stop_reason": 2,
            }
            free = {"prompt": "hi", "stopping_strings": []}
            assert (await post(live, "infer", free))["stop_reason"] == 1
            cut = await post(live, "infer", free | {"max_new_tokens": 2})
            assert (cut["text"], cut["stop_reason"]) == ("on", 0)

    scenario(body)


@pytest.mark.origin("basilisk: STX, ETX and `special_convert`")
def test_marks_become_special_tokens():
    async def body():
        prompts = []

        def script(prompt):
            prompts.append(prompt)
            return b"."

        async with serving(script) as live:
            await post(live, "infer", {"prompt": "\x02USER: hi\x03 b"})
            assert prompts[-1] == (BEGIN_ID, *b"USER: hi", END_ID, *b" b")
            asked = {"prompt": "<s>a</s>", "special_convert": True}
            found = await post(live, "tokenize", asked)
            assert found["tokens"] == [BEGIN_ID, *b"a", END_ID]
            assert found["fragments"] == ["<s>", "a", "</s>"]
            plain = await post(live, "tokenize", {"prompt": "<s>a b"})
            assert plain == {"tokens": list(b"<s>a b"), "fragments": [*"<s>a b"]}

    scenario(body)


@pytest.mark.origin("basilisk: shared secret, errors")
def test_errors_are_basilisks():
    async def body():
        async with serving() as live:
            for wrong in ({}, {"prompt": None}, {"prompt": "  "}):
                assert (await post(live, "infer", wrong, 400))["error"].startswith(
                    "prompt required"
                )
            long = await post(live, "infer", {"prompt": "hi", "max_new_tokens": 1100}, 400)
            words = "prompt length and generation limit must be less than 1024"
            assert long["error"].startswith(words)
            assert "max_new_tokens is 1100" in long["error"] and "max_tokens" not in long["error"]
            none = await post(live, "embed", {"prompt": "hi"}, 501)
            assert none == {"error": "embedding model not loaded"}
            two = {"prompt": "hi", "repetition_penalty": 1.0, "token_repetition_penalty_max": 2.0}
            assert "send one" in (await post(live, "infer", two, 400))["error"]
        async with serving(api_keys=("s3cret",)) as live:
            assert await post(live, "infer", {"prompt": "hi"}, 403) == {"error": "unauthorized"}

    scenario(body)


@pytest.mark.origin("basilisk: ping and config")
def test_ping_and_config_tell_no_paths_or_secrets():
    async def body():
        async with serving(options=("top_k=7",)) as live:
            async with live.http.get(f"{live.url}/basilisk/ping") as response:
                assert await response.text() == "pong"
            async with live.http.get(f"{live.url}/basilisk/config") as response:
                found = await response.json()
            assert (found["top_k"], found["top_p"], found["length"]) == (7, 0.2, 1024)
            assert not {"shared_secret", "directory", "model", "tokenizer"} & set(found)

    scenario(body)


def knobs(**body):
    engine = ScriptedEngine(lambda _: b"", samplers=installed_samplers())

    class AnyModel:
        knobs = frozenset(engine.bank.knobs) | {"temperature", "max_tokens", "stop"}

    asked = BasiliskInferBody(prompt="hi", **body)
    return BasiliskInferring(BasiliskDefaults())._knobs(asked, AnyModel)


@pytest.mark.origin("basilisk: sampling, both names of the penalties")
def test_the_sampling_is_basilisks():
    usual = knobs()
    assert usual == {
        "temperature": 0.5,
        "top_k": 32,
        "top_p": 0.2,
        "top_p_strict": True,
        "min_p": 0.0,
        "repetition_penalty": 1.1,
        "repetition_window": 32,
        "repetition_decay": 64,
        "repetition_sign_blind": True,
        "positional_repetition_penalty": 1.2,
        "min_length": 4,
        "max_tokens": 256,
        "stop": ["\n"],
    }
    for name in ("token_repetition_penalty_max", "repetition_penalty"):
        assert knobs(**{name: 1.5})["repetition_penalty"] == 1.5
    for name in ("token_repetition_penalty_sustain", "repetition_penalty_sustain"):
        assert knobs(**{name: 9})["repetition_window"] == 9
    for name in ("token_repetition_penalty_decay", "repetition_penalty_decay"):
        assert knobs(**{name: 8})["repetition_decay"] == 8
    assert knobs(top_p=0)["top_k"] == 1
    assert "positional_repetition_penalty" not in knobs(positional_repetition_penalty=0)
    assert knobs(max_new_tokens=2)["min_length"] == 2


@pytest.mark.origin("basilisk: config.json")
def test_a_config_file_sets_defaults_and_what_belongs_elsewhere_is_told(tmp_path, caplog):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"top_k": 5, "model": "x.safetensors", "shared_secret": None}))
    (dialect,) = everyone(
        dialects=("basilisk",),
        dialect_options=(f"basilisk.config={path}", "basilisk.min_length=2"),
    )
    assert "model has no effect here; use --model instead" in caplog.text
    assert dialect.options.min_length == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"shared_secret": "x"}', "--api-key-file"),
        ('{"top_k": "x"}', "top_k"),
        ("[]", "expected a JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_config_file_is_refused(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        everyone(dialects=("basilisk",), dialect_options=(f"basilisk.config={path}",))
