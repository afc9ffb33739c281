"""`--models-file`: the file, its mistakes, and two real models served from it."""

import asyncio
import gc
import weakref
from pathlib import Path

import aiohttp
import pytest

from jaxllama.cli import serve
from jaxllama.cli.models_file import read_models_file
from jaxllama.durations import bytes_in, seconds_in
from jaxllama.errors import ConfigError
from jaxllama.llm import LLM
from jaxllama.serve.installed import open_dialects
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.testing import random_params
from tests.cli.test_whole import LOAD, TOKENIZER
from tests.support import MODEL
from tests.weights.writers import flatten, write_gguf

WHOLE = """
memory = "16GB"
default = "b"
keep_alive = "10m"
load_timeout = 90

[[model]]
name = "a"
path = "models/a.gguf"
aliases = ["gpt-4o"]
adapters = { pirate = "adapters/pirate" }
slots = 8
context = 2048
keep_alive = -1
preload = true
cache_dtype = "int8"

[[model]]
name = "b"
"""


@pytest.fixture
def written(tmp_path):
    """A function that writes a models file."""

    def write(text: str) -> Path:
        path = tmp_path / "models.toml"
        path.write_text(text)
        return path

    return write


def test_a_file_says_which_models_there_are_and_how_they_are_loaded(written):
    found = read_models_file(written(WHOLE))
    one, two = found.models
    assert (found.memory, found.default, found.load_seconds) == (16 * 10**9, "b", 90)
    assert found.keep_alive == {"a": None, "b": 600}
    assert (one.aliases, one.preload, two.preload) == (["gpt-4o"], True, False)
    assert one.loading == {
        "model": "models/a.gguf",
        "lora": {"pirate": "adapters/pirate"},
        "slots": 8,
        "context": 2048,
        "cache_dtype": "int8",
    }
    assert two.loading == {"model": "b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[model]\n", "cannot be read"),
        ("memory = 5\n", "missing required field `model`"),
        ("model = []\n", r"expected at least one"),
        ('[[model]]\npath = "a"\n', "missing required field `name`"),
        ('[[model]]\nname = "a"\nslot = 4\n', r"unknown field `slot` .*slots"),
        ('[[model]]\nname = "a"\nslots = "4"\n', r"Expected `int \| null`, got `str`.*slots"),
        ('[[model]]\nname = "a"\nkeep_alive = "soon"\n', "keep_alive of a is 'soon'"),
        ('memory = "much"\n[[model]]\nname = "a"\n', "memory is 'much'"),
        ('load_timeout = 0\n[[model]]\nname = "a"\n', "load_timeout"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(written, text, words):
    with pytest.raises(ConfigError, match=words):
        read_models_file(written(text))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("90", 90),
        ("-1", -1),
        ("1.5s", 1.5),
        ("5 m", None),
        ("", None),
    ],
)
def test_durations_are_read_as_people_write_them(text, seconds):
    assert seconds_in(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * 10**9), ("1GiB", 2**30), ("500 MB", 5 * 10**8), ("12", 12), ("x", None)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert bytes_in(text) == size


@pytest.mark.parametrize(
    "words",
    [
        ("smollm2-135m",),
        ("--model", "smollm2-135m"),
        ("--lora", "a=b"),
        ("--hosts",),
        ("--embedding-model", "minilm"),
        ("--strict-compile",),
        ("--kv-events", "tcp://127.0.0.1:5557"),
    ],
)
def test_what_belongs_to_one_model_is_refused_beside_a_models_file(run, written, words):
    result = run("serve", "--models-file", str(written(WHOLE)), *words)
    assert result.exit_code == 2
    assert "--models-file cannot be used with" in result.output


def test_a_model_that_does_not_exist_is_told_at_the_start(written):
    file = read_models_file(written('memory = "1GB"\n[[model]]\nname = "a"\npath = "no/a.gguf"\n'))
    with pytest.raises(ConfigError, match="model 'a' of the models file"):
        serve.several_models(Settings(), {}, file)


def test_two_real_models_are_served_and_a_broken_one_beside_them(written, tmp_path, monkeypatch):
    monkeypatch.setattr(LLM, "load", LOAD)
    for seed, name in enumerate(("one", "two")):
        weights = flatten(random_params(MODEL, seed=seed))
        write_gguf(tmp_path / f"{name}.gguf", MODEL, weights, metadata=TOKENIZER)
    whole = (tmp_path / "two.gguf").read_bytes()
    (tmp_path / "broken.gguf").write_bytes(whole[:100])
    models = "\n".join(
        f'[[model]]\nname = "{name}"\npath = "{tmp_path}/{name}.gguf"\nslots = 1\ncontext = 128\n'
        for name in ("one", "two", "broken")
    )
    # Room for one of them: about 200 MB for programs, and less than 2 MB for the rest.
    file = read_models_file(written(f'memory = "300MB"\n{models}'))

    async def body() -> None:
        settings = Settings(port=0, drain_timeout=0.0, dialects=("openai",))
        loading = {"compile_behind": False, "prompt_cache_mib": 1.0}
        served = serve.several_models(settings, loading, file)
        server = Server(served, settings, open_dialects(settings))
        await server.start()
        try:
            async with aiohttp.ClientSession() as http:

                async def ask(name: str) -> tuple[int, object]:
                    asked = {"model": name, "prompt": "hi", "max_tokens": 4, "temperature": 0}
                    async with http.post(f"{server.url}/v1/completions", json=asked) as response:
                        found = await response.json()
                        text = found["choices"][0]["text"] if response.ok else found["error"]
                        return response.status, text

                first = await ask("one")
                engine = weakref.ref(served.find("one").service.model.engine)
                second = await ask("two")
                assert engine() is None  # what it held is free
                assert (first[0], second[0]) == (200, 200) and first != second
                assert [each.state for each in served.all] == ["unloaded", "loaded", "unloaded"]
                status, error = await ask("broken")
                assert (status, error["code"]) == (503, "model_failed")
                assert served.find("broken").state == "failed"
                assert await ask("one") == first
                (tmp_path / "broken.gguf").write_bytes(whole)
                assert await ask("broken") == second
        finally:
            assert await server.stop()

    try:
        asyncio.run(body())
    finally:
        gc.unfreeze()
