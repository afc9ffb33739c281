"""LoRA adapters over HTTP: chosen by model name or field, loaded and unloaded while serving."""

import asyncio
import contextlib
from functools import partial
from pathlib import Path

import pytest

from jaxllama.engine.adapters import LoadedAdapters
from jaxllama.engine.engine import Engine
from jaxllama.intake import Intake
from jaxllama.model.adapters import empty_adapters
from jaxllama.testing import ByteTokenizer
from jaxllama.weights.lora import read_adapter
from jaxllama_formats.chatml import ChatMl
from tests.adapter_writer import random_adapter, write_adapter
from tests.engine.test_adapters import with_adapters
from tests.serve.clients import DIALECTS, fetch, post
from tests.serve.conftest import Running, running, scenario
from tests.support import ENGINE, MODEL, QuickPrograms, place_all, programs

ASK = {"prompt": "Once", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("one", "two")):
        write_adapter(root / name, random_adapter(MODEL, seed=seed))
    write_adapter(root / "high", random_adapter(MODEL, rank=32), rank=32)
    return root


@contextlib.asynccontextmanager
async def serving(folder: Path, *, loaded: tuple[str, ...] = ("one",), **settings):
    """A server on a tiny model whose engine is its own: it is closed with the server."""
    kept = programs(MODEL, with_adapters(ENGINE), kind=QuickPrograms)
    blocks = empty_adapters(MODEL, kept.engine, kept.mesh)
    weights = place_all(MODEL, kept.engine, kept.mesh)
    own = QuickPrograms(
        MODEL, kept.engine, kept.bank, weights, kept.mesh,
        executables=kept.executables, adapters=blocks,
    )  # fmt: skip
    kept.warm_up()
    own._compiler.made.update(kept._compiler.made)  # loading them again takes long
    adapters = LoadedAdapters(own, blocks)
    read = partial(read_adapter, model=MODEL, engine=kept.engine)
    for name in loaded:
        adapters.load(name, read(folder / name))
    engine = Engine(own, adapters=adapters)
    intake = Intake(ByteTokenizer(), ChatMl(), own.bank, own.engine, adapters=adapters)
    settings = {"lora_folder": str(folder)} | settings
    async with running(
        engine, intake=intake, dialects=DIALECTS, read_adapter=read, **settings
    ) as live:
        yield live


async def text(live: Running, **more) -> str:
    found = await post(live, "/v1/completions", ASK | more)
    return found["choices"][0]["text"]


def test_an_adapter_is_chosen_by_the_models_name_or_by_the_field(folder: Path):
    async def body() -> None:
        async with serving(folder) as live:
            plain = await text(live)
            one = await text(live, model="one")
            assert one != plain
            assert await text(live, lora="one") == one
            assert await text(live, model="one", lora_scale=0) == plain
            assert await text(live, lora="one", lora_scale=0.5) != one
            several = [text(live, lora=name, seed=1) for name in (None, "one", None, "one")]
            assert await asyncio.gather(*several) == [plain, one, plain, one]
            chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            answer = await post(live, "/v1/chat/completions", chat | {"model": "one"})
            assert answer["model"] == "one"
            cards = (await fetch(live, "/v1/models"))["data"]
            assert [(card["id"], card.get("parent")) for card in cards] == [
                ("scripted", None),
                ("one", "scripted"),
            ]
            async with live.http.get(f"{live.url}/metrics") as response:
                metrics = await response.text()
            assert 'jaxllama_adapter_requests_total{adapter="one"} 7.0' in metrics
            assert "jaxllama_adapters 1.0" in metrics

    scenario(body)


def test_scores_and_echoes_are_the_adapters(folder: Path):
    async def body() -> None:
        async with serving(folder) as live:
            ask = {"prompt": "Once", "continuations": ["abc", "x" * 40]}
            plain = await post(live, "/score", ask)
            one = await post(live, "/score", ask | {"model": "one"})
            assert one["model"] == "one"
            for before, after in zip(plain["scores"], one["scores"], strict=True):
                assert before["logprob"] != after["logprob"]
            echo = {"prompt": "Onceabc", "echo": True, "max_tokens": 0, "logprobs": 0}
            told = await post(live, "/v1/completions", echo | {"model": "one"})
            values = told["choices"][0]["logprobs"]["token_logprobs"][-3:]
            assert sum(values) == pytest.approx(one["scores"][0]["logprob"], abs=1e-4)
            labels = {"prompt": "Once", "labels": ["a", "b"], "model": "one"}
            assert (await post(live, "/classify", labels))["model"] == "one"

    scenario(body)


def test_adapters_are_loaded_replaced_and_unloaded_while_serving(folder: Path):
    async def body() -> None:
        async with serving(folder) as live:
            before = dict(live.engine.programs.traces)
            plain, one = await text(live), await text(live, model="one")
            load = partial(post, live, "/v1/load_lora_adapter")
            two = {"lora_name": "two", "lora_path": "two"}
            told = await load(two)
            assert [each["name"] for each in told["adapters"]] == ["one", "two"]
            assert (told["slots"], told["rank"]) == (4, 16)
            second = await text(live, model="two")
            assert len({plain, one, second}) == 3
            again = await load(two, status=400)
            assert "is loaded already" in again["error"]["message"]
            swapped = {"lora_name": "one", "lora_path": str(folder / "two"), "load_inplace": True}
            await load(swapped)
            assert await text(live, model="one") == second
            await post(live, "/v1/unload_lora_adapter", {"lora_name": "one"})
            gone = await post(live, "/v1/completions", ASK | {"model": "one"}, status=404)
            assert "this server serves 'scripted', 'two'" in gone["error"]["message"]
            unknown = await post(live, "/v1/completions", ASK | {"lora": "one"}, status=400)
            assert unknown["error"]["param"] == "lora"
            left = await fetch(live, "/v1/lora_adapters")
            assert left["adapters"] == [{"name": "two", "requests": 1}]
            assert dict(live.engine.programs.traces) == before
            await live.settled()

    scenario(body)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"lora_name": "x", "lora_path": "../one"}, "inside the one that --lora-folder allows"),
        ({"lora_name": "x", "lora_path": "/etc"}, "inside the one"),
        ({"lora_name": "x", "lora_path": "one\0"}, "inside the one"),
        ({"lora_name": "x", "lora_path": "none"}, "is no adapter"),
        ({"lora_name": "x", "lora_path": "high"}, "has rank 32"),
        ({"lora_name": "a b", "lora_path": "one"}, "adapter name 'a b' is not usable"),
        ({"lora_name": "scripted", "lora_path": "one"}, "the name of the model"),
    ],
)
def test_what_cannot_be_loaded_is_refused(folder: Path, asked: dict, words: str):
    async def body() -> None:
        async with serving(folder, loaded=()) as live:
            told = await post(live, "/v1/load_lora_adapter", asked, status=400)
            assert words in told["error"]["message"]
            assert (await fetch(live, "/v1/lora_adapters"))["adapters"] == []

    scenario(body)


def test_without_a_folder_no_client_changes_adapters(folder: Path):
    async def body() -> None:
        async with serving(folder, lora_folder=None) as live:
            for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
                told = await post(live, path, {"lora_name": "one", "lora_path": "one"}, status=400)
                assert "start it with --lora-folder PATH" in told["error"]["message"]

    scenario(body)


def test_endpoints_without_adapters_refuse_their_names(folder: Path):
    async def body() -> None:
        async with serving(folder) as live:
            told = await post(live, "/v1/embeddings", {"input": "a", "model": "one"}, status=400)
            assert "which this endpoint cannot apply" in told["error"]["message"]

    scenario(body)


def test_a_server_without_room_for_adapters_says_how_to_get_it():
    async def body() -> None:
        async with running(dialects=DIALECTS, lora_folder=".") as live:
            told = await post(live, "/v1/completions", ASK | {"lora": "one"}, status=400)
            assert "start with --lora NAME=PATH or with --lora-slots" in told["error"]["message"]

    scenario(body)
