"""The commands on a tiny model: real weights, real programs, real files."""

import inspect
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jaxllama.cli.inspect import config_lines
from jaxllama.cli.options import loading_options
from jaxllama.config import Experts, LayerSpec, Rope
from jaxllama.engine.executables import MAGIC
from jaxllama.engine.own_files import write_own
from jaxllama.intake import Intake
from jaxllama.kernels.cpu import library
from jaxllama.llm import LLM
from jaxllama.testing import ByteTokenizer, random_params
from jaxllama_formats.chatml import ChatMl
from tests.support import ENGINE, MODEL, new_engine
from tests.text.golden_files import content
from tests.weights.writers import flatten, write_gguf

LOAD = LLM.__dict__["load"]  # before this folder's fixture replaces it
PLAIN = MODEL.vocab_size - 259
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [*PIECES, *(f"x{number}" for number in range(PLAIN))],
    "tokenizer.ggml.scores": [0.0] * MODEL.vocab_size,
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * PLAIN],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(path, MODEL, flatten(random_params(MODEL)), metadata=TOKENIZER)
    return path


@pytest.fixture
def random_llm(monkeypatch):
    """A model of random weights, as LLM.load makes one of a file."""

    def load(_model: str | None = None, **_settings: object) -> LLM:
        engine = new_engine()
        return LLM(engine, Intake(ByteTokenizer(), ChatMl(), engine.bank, ENGINE), config=MODEL)

    monkeypatch.setattr(LLM, "load", load)
    monkeypatch.setattr(LLM, "close", lambda _: None)  # other tests use its weights


def test_options_are_arguments_of_load():
    accepted = inspect.signature(LOAD.__func__).parameters
    named = {option.name.removeprefix("load_") for option in loading_options(None)}
    assert named <= set(accepted)


@pytest.mark.usefixtures("random_llm")
def test_generate_and_batch_say_the_same(run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello", "id": "h"}\n{"prompt": [10, 20]}\n')
    knobs = ("-n", "8", "--seed", "3", "--top-k", "20", "--logit-bias", "5=-1,7=2")
    alone = json.loads(run("generate", "-p", "hello", "--json", *knobs).stdout)
    assert run("batch", "in.jsonl", "-o", "out.jsonl", *knobs).exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["index"] for row in rows} == {0, 1}
    (row,) = [row for row in rows if row.get("id") == "h"]
    for field in ("text", "tokens", "seed", "finish_reason"):
        assert row[field] == alone[field]
    assert alone["timings"]["prompt_tokens_per_second"] > 0


@pytest.mark.usefixtures("random_llm")
def test_perplexity_of_a_random_model_is_about_its_vocabulary(run, tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 5)
    value = json.loads(run("perplexity", "text.txt", "--json").stdout)["perplexity"]
    assert MODEL.vocab_size / 4 < value < MODEL.vocab_size * 20


def test_inspect_shows_the_model_and_its_memory(run, gguf):
    plain = ("--kernels", "xla", "--dtype", "float32")  # the C++ kernels pad such small matrices
    result = run("inspect", gguf, "--json", "--slots", "4", "--context", "128", *plain)
    found = json.loads(result.stdout)
    weights = sum(value.size for value in flatten(random_params(MODEL)).values())
    assert found["config"]["layers"] == MODEL.layers
    assert found["tensors"]["weights"] == weights
    assert sum(each["bytes"] for each in found["tensors"]["kinds"].values()) == weights * 4
    assert found["memory"]["weights"] == weights * 4
    assert found["memory"]["cache"] > 0 and found["memory"]["slots"] == 4
    assert found["text"]["end_ids"] == [2] and found["text"]["chat_template"] is False
    sizes = ("--kernels", "xla", "--slots", "12", "--prefill-chunk", "30", "--steps-per-sync", "2")
    shown = run("inspect", gguf, *sizes, "--sync-ms", "5").stdout
    assert "up to 36 prompt tokens per prefill call, in tiles of 12" in shown
    assert "up to 2 steps per decode call, about 5 ms" in shown
    more = json.loads(run("inspect", gguf, "--json", "--slots", "8", "--context", "128").stdout)
    assert more["memory"]["cache"] == 2 * found["memory"]["cache"]
    small = ("--cache-dtype", "int8", "--slots", "8", "--context", "128")
    less = json.loads(run("inspect", gguf, "--json", *small).stdout)
    head = MODEL.head_dim  # float16 against one byte each and a scale
    assert less["memory"]["cache"] * 2 * head == more["memory"]["cache"] * (head + 4)


def test_inspect_shows_the_memory_of_a_draft_model(run, gguf):
    if not library.available():
        pytest.skip(library.why_not())
    alone, both = (
        json.loads(run("inspect", gguf, "--json", "--slots", "4", *more).stdout)
        for more in ((), ("--draft-model", gguf))
    )
    assert alone["draft_model"] is None and alone["engine"]["draft_tokens"] == 0
    assert both["draft_model"]["layers"] == MODEL.layers and both["engine"]["draft_tokens"] == 4
    memory = both["memory"]
    assert memory["draft_weights"] == memory["weights"]
    assert memory["draft_cache"] == memory["cache"]
    assert memory["total"] == 2 * alone["memory"]["total"]
    assert "draft model tiny: weights" in run("inspect", gguf, "--draft-model", gguf).stdout


def test_inspect_shows_another_tokenizer_and_refuses_one_of_another_model(run, gguf, tmp_path):
    other = {**TOKENIZER, "tokenizer.ggml.eos_token_id": 5}
    write_gguf(tmp_path / "other.gguf", MODEL, {}, metadata=other)
    asked = ("inspect", gguf, "--json", "--tokenizer")
    found = json.loads(run(*asked, tmp_path / "other.gguf").stdout)
    assert found["text"]["end_ids"][0] == 5
    (tmp_path / "tokenizer.model").write_bytes(content("tiktoken.model"))
    refused = run(*asked, tmp_path / "tokenizer.model")
    assert refused.exit_code == 2
    assert f"the model tiny has {MODEL.vocab_size}" in refused.stderr


def test_inspect_shows_the_sampling_that_is_recommended(run, tmp_path):
    path = tmp_path / "advised.gguf"
    advice = {"general.sampling.temp": 0.3, "general.sampling.top_p": 0.9}
    write_gguf(path, MODEL, flatten(random_params(MODEL)), metadata=TOKENIZER | advice)
    assert "sampling temperature 0.3, top_p 0.9" in run("inspect", path).stdout
    found = json.loads(run("inspect", path, "--json").stdout)
    assert found["sampling_defaults"] == {"temperature": 0.3, "top_p": 0.9}


def test_inspect_counts_the_matrix_that_packed_weights_are_unpacked_to(run, tmp_path):
    config = replace(MODEL, width=64)
    weights = flatten(random_params(config))
    write_gguf(tmp_path / "q8.gguf", config, weights, metadata=TOKENIZER, kind="Q8_0")
    sizes = ("--json", "--kernels", "xla", "--slots", "4", "--context", "128")
    dense, packed = (
        json.loads(run("inspect", "q8.gguf", *sizes, *more).stdout)["memory"]
        for more in ((), ("--packed",))
    )
    assert packed["weights"] < dense["weights"] / 3
    assert (dense["unpacked"], packed["unpacked"]) == (0, config.vocab_size * config.width * 4)
    assert packed["total"] == packed["weights"] + packed["cache"] + packed["unpacked"]
    assert (
        "one unpacked matrix at a time" in run("inspect", "q8.gguf", *sizes[1:], "--packed").stdout
    )


def test_inspect_lists_the_programs_and_what_is_kept_of_them(run, gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines = run("inspect", gguf, "--programs").stdout.splitlines()
    (line,) = [line for line in lines if line.strip().startswith("decode ")]
    assert "not kept" in line and line.endswith("draws tokens with all samplers")
    found = json.loads(run("inspect", gguf, "--programs", "--json").stdout)["programs"]
    file = Path(found["folder"]) / "decode.program"
    write_own(file, b'{"seconds": 12.5}\n...', MAGIC)
    lines = run("inspect", gguf, "--programs").stdout.splitlines()
    (line,) = [line for line in lines if line.strip().startswith("decode ")]
    assert "12.5 s to compile" in line


def test_inspect_shows_the_rotation_that_options_change(run, gguf):
    options = ("--rope-scale", "4", "--rope-theta", "2e5", "--context", str(MODEL.max_context * 4))
    found = json.loads(run("inspect", gguf, "--json", *options).stdout)["config"]
    assert (found["rope"]["kind"], found["rope"]["factor"]) == ("linear", 4.0)
    assert (found["rope"]["theta"], found["max_context"]) == (2e5, MODEL.max_context * 4)
    assert "theta 200000, linear by 4" in run("inspect", gguf, *options).stdout
    result = run("inspect", gguf, "--rope-alpha", "-1")
    assert result.exit_code != 0
    assert "rope_alpha is -1.0; it must be a number above 0" in result.stderr


def test_inspect_shows_the_differences_of_layers():
    specs = (LayerSpec(sparse=False), *[LayerSpec()] * 3, LayerSpec(windowed=False))
    model = replace(
        MODEL,
        layers=5,
        window=9,
        pattern=specs,
        local_rope=Rope(5e3),
        experts=Experts(8, 2, 48),
        attention_cap=50.0,
    )
    shown = "\n".join(config_lines(asdict(model)))
    for words in (
        "attention_cap 50.0",
        "theta 5000 in layers with a window",
        "4 of 5 have the window, 4 of 5 have experts",
        "8 of width 48, 2 used per token",
    ):
        assert words in shown


def test_inspect_is_readable(run, gguf):
    text = run("inspect", gguf).stdout
    for words in ("layers", "memory", "chat template: no", "F32", "16 slots"):
        assert words in text


def test_pull_prints_the_path_last(run, gguf):
    result = run("pull", gguf)
    assert result.stdout == f"{gguf}\n"


def test_what_is_no_model_is_one_line(run, tmp_path):
    (tmp_path / "page.gguf").write_text("<html>")
    for name in ("pull", "inspect"):
        result = run(name, "page.gguf")
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: page.gguf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--context", "100000"], "context is 100000"),
        (["--slots", "0"], "slots is 0"),
        (["--mesh", "data=x"], "data=x"),
        (["--format", "klingon"], "klingon"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(run, gguf, monkeypatch, options, words):
    monkeypatch.setattr(LLM, "load", LOAD)
    result = run("chat", "-m", gguf, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line
