"""Every benchmark runs on a tiny model and prints records that say what they should.

Nothing here looks at how long anything took.
"""

import dataclasses
import gzip
import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf.quants import dequantize

from jaxllama import LLM
from jaxllama.kernels.cpu import library
from jaxllama.request import Finished, FinishReason, Token, Usage
from jaxllama.testing import check_weights
from tests.support import QUICK_PROCESS, QuickPrograms, only
from tests.weights.encoder_writer import write_encoder

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
TINY = "tiny-q4_0"
# accelerator.py needs no click, so it is tested by itself.
SCRIPTS = sorted(
    path.stem
    for path in BENCH.glob("*.py")
    if '__name__ == "__main__"' in path.read_text() and path.stem != "accelerator"
)
pytestmark = pytest.mark.usefixtures("no_samplers", "quick_programs")

MEASURED = ("logit_bias", "min_p", "repetition", "top_k", "top_p")  # samplers
PEER_KEYS = {"peer", "peer_value", "ratio"}
KEYS = {"bench", "case", "value", "unit"}
CODE_KEYS = {"commit", "jax", "jaxlib"}
MACHINE_KEYS = {"backend", "device", "devices", "threads"}
MODEL_KEYS = {"mesh", "dtype", "cache_dtype", "kernels"}
WITHOUT_MODEL = {
    "machine": set(),
    "encode": set(),
    "kernels": {"kernels"},
}  # what they say of those
MACHINE = {"backend": "cpu", "device": "some processor", "devices": 1, "threads": 2} | {
    "commit": "0123456789ab",
    "jax": "1.0",
    "jaxlib": "1.1",
}
FIGURES = [
    {"bench": "decode", "case": "m, 1 slot, depth 64", "value": 20.0, "unit": "tokens/s"}
    | {"peer": "llama.cpp", "peer_value": 10.0, "ratio": 2.0},
    {"bench": "decode", "case": "m, 4 slots, depth 64", "value": 60.0, "unit": "tokens/s"}
    | {"peer": "llama.cpp", "peer_value": 15.0, "ratio": 4.0},
    {"bench": "machine", "case": "read, 1 thread", "value": 22.5, "unit": "GB/s"},
]
RECORDS: list[dict[str, Any]] = [figure | MACHINE for figure in FIGURES]
LOADERS = {
    "classify",
    "compile",
    "decode",
    "formats",
    "memory",
    "origins",
    "prefill",
    "prompt_cache",
    "restore",
    "sampling",
    "serve",
    "speculation",
    "trace",
    "versus",
}
LOADING = (
    *("--platform", "cpu", "--dtype", "float32", "--cache-dtype", "bfloat16"),
    *("--mesh", "data=1,model=2", "--kernels", "xla"),
)


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one run: its processes share what they compile."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bench-caches"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    for name, value in QUICK_PROCESS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(BENCH)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def run(name: str, *arguments: str) -> Result:
    return CliRunner().invoke(module(name).main, arguments)


def records(name: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """The records that a script prints, all of them valid, by case."""
    result = run(name, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found
    for record in found:
        check_record(name, record)
    return {record["case"]: record for record in found}


def check_record(bench: str, record: dict[str, Any]) -> None:
    model = WITHOUT_MODEL.get(bench, MODEL_KEYS)
    own = record.keys() - {"peer_setting", "load"} - MACHINE_KEYS - CODE_KEYS - model
    assert own in (KEYS, KEYS | PEER_KEYS)
    assert record.keys() >= MACHINE_KEYS | CODE_KEYS | model
    assert record["bench"] == bench
    assert record["case"]
    assert record["unit"]
    for name in record.keys() & {"value", "peer_value", "ratio"}:
        assert isinstance(record[name], int | float)
        assert math.isfinite(record[name])
        assert record[name] >= 0


# The form.


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_scripts_are_those_that_were_promised() -> None:
    assert {"compile", "decode", "machine", "prefill", "report", "sampling"} <= set(SCRIPTS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": "fast"},
        {"value": math.nan},
        {"value": -1.0},
        {"case": ""},
        {"bench": "prefill"},
        {"peer": "llama.cpp"},
        {"note": "one key too many"},
        {"mesh": "of a model that is not there"},
    ],
)
def test_the_check_of_records_can_fail(wrong: dict[str, Any]) -> None:
    right = RECORDS[-1]
    check_record("machine", right)
    with pytest.raises(AssertionError):
        check_record("machine", right | wrong)


@pytest.mark.parametrize("name", sorted(MACHINE_KEYS | CODE_KEYS))
def test_a_record_without_its_environment_is_none(name: str) -> None:
    less = {key: value for key, value in RECORDS[-1].items() if key != name}
    with pytest.raises(AssertionError):
        check_record("machine", less)
    with pytest.raises(Exception, match="no record"):
        module("report").read([json.dumps(less)])


def test_a_board_that_does_not_know_where_it_measures_records_nothing() -> None:
    board = module("harness").Board("some", as_json=False, short=False)
    with pytest.raises(RuntimeError, match="before it says where"):
        board.add("case", "s", [1.0])


def test_another_platform_than_the_one_asked_for_is_refused() -> None:
    check = module("environment").check_platform
    check(None)
    check("cpu")
    with pytest.raises(Exception, match="JAX runs on cpu; expected gpu"):
        check("cuda")


def test_the_commit_is_that_of_the_repository() -> None:
    found = module("environment").commit()
    if found != "unknown":  # a folder without git's own
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        whole = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        assert whole.startswith(found.removesuffix("+changes"))


# How models are loaded.


def test_every_script_that_loads_a_model_is_listed() -> None:
    accepting = {name for name in SCRIPTS if "--cache-dtype" in run(name, "--help").output}
    using = {name for name in SCRIPTS if "--model" in run(name, "--help").output}
    assert accepting == using == LOADERS


def check_loading(found: dict[str, dict[str, Any]]) -> None:
    """Every record says what LOADING asked for."""
    for case, record in found.items():
        assert case.startswith(TINY)
        assert (record["backend"], record["mesh"]) == ("cpu", "data=1,model=2")
        assert (record["dtype"], record["cache_dtype"]) == ("float32", "bfloat16")
        assert (record["kernels"], record["devices"]) == ("xla", 8)
        assert record["device"] != "cpu"  # every processor has that name


def test_how_a_model_is_loaded_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    loaded: list[Any] = []
    load = LLM.load.__func__
    engine = classmethod(lambda *given, **named: loaded.append(load(*given, **named)) or loaded[-1])
    monkeypatch.setattr(LLM, "load", engine)
    check_loading(records("decode", "-m", TINY, *few(), "--slots", "2", *LOADING))
    (llm,) = loaded
    size = llm.engine_config
    assert (size.dtype, size.cache_dtype, size.kernels) == ("float32", "bfloat16", "xla")
    assert (size.data_parallel, size.model_parallel) == (1, 2)


def test_how_a_process_loads_a_model_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    subjects: list[Any] = []

    def start(subject: Any, _cache: Path) -> Any:
        subjects.append(subject)
        return module("compile").Start(1.0, 2.0, 3.0, 4)

    monkeypatch.setattr(module("compile"), "start", start)
    loads = {"first": 1.0, "all": 2.0, "programs": {"decode": 1.0}}
    monkeypatch.setattr(module("compile"), "load", lambda *_: loads)
    check_loading(records("compile", "-m", TINY, "--repetitions", "1", *LOADING))
    assert subjects[0].options[2:] == [
        *("--mesh=data=1,model=2", "--dtype=float32", "--cache-dtype=bfloat16", "--kernels=xla")
    ]


def test_make_bench_runs_every_script_that_measures() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = re.search(r"^BENCHES := (.*)$", makefile.replace("\\\n", ""), re.MULTILINE)
    assert listed is not None
    assert set(SCRIPTS) - set(listed[1].split()) == {
        *("formats", "history", "origins", "report", "trace", "versus", "write_gguf"),
        *("scaling", "simulate"),
    }


# The scripts, on a tiny model.


def test_machine_tells_cores_and_bandwidth() -> None:
    found = records("machine", "--short", "--repetitions", "1")
    assert {record["unit"] for record in found.values()} == {"cores", "GB/s"}


@pytest.mark.skipif(not library.available(), reason=library.why_not() or "the kernels are there")
def test_kernels_are_held_against_the_machine() -> None:
    chosen = ("--form", "q8_0", "--rows", "1", "--rows", "9")
    found = records("kernels", "--short", "--repetitions", "1", *chosen)
    units = {record["unit"] for record in found.values()}
    assert units == {"us", "GB/s", "GOP/s", "%"}
    assert found["ceiling, memory"]["unit"] == "GB/s"
    assert f"{library.isa()}, q8_0, down, 1 row, weights, share of the ceiling" in found


def test_encode_measures_texts_of_several_lengths(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert")
    found = records("encode", "--encoder", str(folder), "--texts", "3", "--repetitions", "1")
    assert [(case, record["unit"]) for case, record in found.items()] == [
        ("bert, 3 texts of 12 tokens", "texts/s"),
        ("bert, 3 texts of 32 tokens", "texts/s"),
        ("bert, 1 text of 12 tokens", "ms"),
    ]


@pytest.mark.skipif(not library.available(), reason=library.why_not() or "the kernels are there")
def test_speculation_measures_every_kind_of_task_with_and_without_drafts(tmp_path: Path) -> None:
    files = module("write_gguf")
    small = files.ModelShape("small", 512, 64, 2, 2, 1, 128, 1024)  # heads that have C++ kernels
    files.write_random(small, tmp_path / "small.gguf", files.Q4_0)
    asked = ("--short", "--repetitions", "1", "--slots", "2", "--tokens", "4")
    tasks = json.loads((BENCH / "speculation.json").read_text())
    assert {kind: len(texts) for kind, texts in tasks.items()} == {
        "editing": 10,
        "quoting": 10,
        "prose": 10,
        "fields": 6,
    }
    model = str(tmp_path / "small.gguf")
    with only(("constraint",), kind=QuickPrograms):
        found = records("speculation", "-m", model, "--draft-model", model, *asked)
    choices = ("auto", "off", "always", "accepted")
    drafting = [kind for kind in tasks if kind != "fields"]
    expected = [f"small, 2 slots, {kind}, {each}" for kind in drafting for each in choices]
    assert list(found) == [*expected, "small, 2 slots, fields, auto"]
    shares = [record["value"] for record in found.values() if record["unit"] == "%"]
    assert min(shares) > 50
    rates = [record for record in found.values() if record["unit"] == "tokens/s"]
    assert {record["peer"] for record in rates} == {"--draft-tokens 0"}


def test_decode_measures_every_number_of_slots_asked_for() -> None:
    found = records("decode", "-m", TINY, *few(), "--slots", "1", "--slots", "2")
    assert list(found) == [
        "tiny-q4_0, 1 slot, depth 8",
        "tiny-q4_0, 1 slot, depth 8, weights read",
        "tiny-q4_0, 2 slots, depth 8",
    ]


def test_a_table_is_printed_without_json() -> None:
    result = run("decode", "-m", TINY, *few(), "--slots", "1")
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.stdout
    assert "{" not in result.stdout


def test_a_prompt_from_the_cache_is_held_against_computing_it() -> None:
    asked = ("-m", TINY, "--tokens", "96", "--repetitions", "1")
    (found,) = records("prompt_cache", *asked).values()
    assert (found["case"], found["unit"]) == ("tiny-q4_0, 96 tokens restored", "ms")
    assert found["peer"] == "computed again"


def test_restoring_is_held_against_a_plain_read() -> None:
    found = records("restore", "-m", TINY, "--short", "--repetitions", "1")
    assert [(case, record["unit"], record.get("peer")) for case, record in found.items()] == [
        ("tiny-q4_0 as bf16, from the disk", "GB/s", "plain read"),
        ("tiny-q4_0 as bf16, from memory", "GB/s", "plain read"),
        ("tiny-q4_0 as bf16, read and placed", "s", None),
    ]


def test_formats_measures_a_model_in_every_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    formats, home = module("formats"), tmp_path / "README.md"
    home.write_text((ROOT / "README.md").read_text())
    monkeypatch.setattr(formats, "README", home)
    seen: list[str] = []

    def measured(form: str, *_: Any) -> Any:
        seen.append(form)
        return formats.FormFigures(1e6, 2e6, 1.99e6, 10.0 + len(seen))

    monkeypatch.setattr(formats, "measured", measured)
    found = records("formats", "-m", TINY, "--write")
    assert tuple(seen) == formats.FORMS
    assert {each["unit"] for each in found.values()} == {"perplexity", "MiB", "x"}
    lines = formats.lines_of(home.read_text())
    assert [each.form for each in lines] == list(formats.FORMS)
    assert (lines[1].size, lines[1].memory, lines[1].perplexity) == ("1", "2", "12.00")
    assert run("formats", "-m", TINY, "--write", "--short").exit_code == 2


def test_a_form_is_written_loaded_and_measured(tmp_path: Path) -> None:
    formats, subject = module("formats"), module("subject")
    path = formats.written(
        "`convert --dtype int4`", module("write_gguf").model_file(TINY), tmp_path
    )
    with only(MEASURED, kind=QuickPrograms):
        found = formats.figures_of(subject.Subject(path), "A short text of some words. " * 4)
    assert 0 < found.size < 1e6
    assert found.perplexity > 1
    assert found.stated > 0


def test_the_table_of_formats_is_one_that_the_script_writes() -> None:
    formats, readme = module("formats"), (ROOT / "README.md").read_text()
    lines = formats.lines_of(readme)
    assert [each.form for each in lines] == list(formats.FORMS)
    assert formats.with_table(readme, lines) == readme
    perplexity = {each.form: float(each.perplexity) for each in lines}
    best = perplexity["`convert --dtype int4 --minimise-error`"]
    assert best <= perplexity["`export --to gguf-q4_0`"]


def few() -> tuple[str, ...]:
    return ("--repetitions", "1", "--tokens", "8", "--depth", "8")


@pytest.mark.slow
def test_serving_is_held_against_the_engine_alone() -> None:
    asked = ("-m", TINY, "--repetitions", "1", "--slots", "2", "--tokens", "4", "--prompt", "4")
    found = records("serve", *asked, "--overhead")
    (whole, *added) = found.values()
    assert (whole["peer"], whole["unit"]) == ("the engine alone", "s")
    assert [each["unit"] for each in added] == ["%", "%"]


def test_prefill_never_finds_its_prompt_in_the_cache() -> None:
    found = records("prefill", "-m", TINY, "--tokens", "15", "--repetitions", "2")
    assert list(found) == ["tiny-q4_0, 15 tokens"]


@pytest.mark.slow
def test_sampling_measures_each_installed_sampler_and_the_usual_chain() -> None:
    with only(MEASURED):
        found = records("sampling", "-m", TINY, "--rows", "2", "--repetitions", "1")
    names = [case.removeprefix("tiny-q4_0, 2 rows, ") for case in found if "share" not in case]
    assert names[:3] == ["greedy", "temperature", "top_k + top_p + min_p + repetition"]
    assert names[3] == "the whole chain, penalties included"
    assert {"min_p alone", "repetition alone", "logit_bias alone"} <= set(names)
    assert {case for case in found if case.endswith(", share of a step")} == {
        f"tiny-q4_0, 2 rows, {name}, share of a step"
        for name in (*names, "sampler 25, which nobody uses")
    }


@pytest.mark.slow
@pytest.mark.origin(
    "RLLaMA: its benchmark",
    "ExLlama: its benchmark with perplexity and memory",
    "llama-burn: its benchmark of three strategies",
    "LLaMbA: its batching test",
)
def test_the_origins_procedures_run_on_any_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("origins"), "REQUESTS", 2)
    few = ("-m", TINY, "--tokens", "8", "--repetitions", "1")
    found = records("origins", "llama-burn", *few)
    assert [case.rpartition(", ")[2] for case in found] == list(module("origins").LLAMA_BURN)
    assert {record["unit"] for record in found.values()} == {"s"}
    (record,) = records("origins", "rllama", *few).values()
    assert record["unit"] == "ms/token" and "peer" not in record
    (tmp_path / "t.txt").write_text("one two three " * 9)
    text = ("--length", "64", "--text", str(tmp_path / "t.txt"))
    units = [each["unit"] for each in records("origins", "exllama", *few, *text).values()]
    assert units == ["tokens/s"] * 3 + ["MiB", "perplexity"]
    monkeypatch.setattr(module("origins"), "SAMPLERS", {"no sampler": {}})
    assert len(records("origins", "llamba", "--short", *few)) == 3


@pytest.mark.origin("Rama: its benchmark, beside llama2.c's program")
def test_a_model_of_the_origins_sizes_stands_beside_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins, stories = module("origins"), module("write_llama2c")
    told = (origins.Published(10.0, "a 4090"),)
    monkeypatch.setattr(origins, "RAMA", {stories.TINY_STORIES: told})
    program = tmp_path / "run"
    program.write_text("#!/bin/sh\necho achieved tok/s: 40.0 >&2\n")
    program.chmod(0o755)
    few = ("--tokens", "8", "--repetitions", "1", "--run", str(program))
    beside, published = records("origins", "rama", *few).values()
    assert (beside["peer"], beside["peer_value"]) == ("llama2.c", 40.0)
    assert beside["peer_setting"] == "1 thread"
    assert (published["peer_setting"], published["peer_value"]) == ("a 4090", 10.0)
    program.write_text("#!/bin/sh\n# GOMP_parallel\necho achieved tok/s: $OMP_NUM_THREADS >&2\n")
    beside, _ = records("origins", "rama", *few, "--threads", "3").values()
    assert (beside["peer_setting"], beside["peer_value"]) == ("3 threads", 3.0)
    program.write_text("#!/bin/sh\necho broken >&2\n")
    assert "printed no rate: broken" in run("origins", "rama", *few).output


def test_a_model_that_does_not_fit_into_memory_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module("origins"), "available", lambda: 0)
    result = run("origins", "rllama")
    assert result.exit_code == 1 and "give another one with -m" in result.stderr


@pytest.mark.slow
def test_two_checkouts_are_measured_in_pairs() -> None:
    cases = ("--decode", "2", "--prefill", "40")
    found = records("versus", "-m", TINY, "--repetitions", "2", *cases, sys.executable)
    assert list(found) == [
        f"{TINY}, {case}{tail}"
        for case in ("decode 2 slots", "prefill 40 tokens")
        for tail in ("", ", pairs")
    ]
    rates = found[f"{TINY}, decode 2 slots"]
    assert rates["peer"] == f"jaxllama {module('environment').commit().removesuffix('+changes')}"
    assert found[f"{TINY}, decode 2 slots, pairs"]["value"] > 0


def test_an_environment_without_jaxllama_is_no_other_side(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    result = run("versus", "-m", TINY, "--decode", "1", str(python))
    assert result.exit_code == 1
    assert f"the process of {python} ended" in result.output


def test_a_trace_has_the_names_of_the_source(tmp_path: Path) -> None:
    sizes = ("--slots", "2", "--prompt", "40", "--steps", "2")
    result = run("trace", "-m", TINY, "--out", str(tmp_path), *sizes)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = " ".join(event.get("name", "") for event in events)
    assert all(part in names for part in ("block_0/attention/", "block_1/feed_forward", "head"))
    (profile,) = tmp_path.rglob("*.xplane.pb")
    assert b"block_0/attention" in profile.read_bytes()


def test_memory_tells_the_peak_of_loading_and_the_growth_of_decoding() -> None:
    found = records("memory", "-m", TINY, "--steps", "20")
    assert [record["unit"] for record in found.values()] == ["MiB", "x", "MiB", "MiB"]
    assert "tiny-q4_0, 4 slots, growth over 20 steps" in found
    assert "tiny-q4_0, 4 slots, growth over 20 steps, in their second half" in found


@pytest.mark.slow
def test_a_first_start_compiles_and_a_second_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XLA_FLAGS")  # one device is enough
    found = records("compile", "-m", TINY, "--repetitions", "1")
    assert found["tiny-q4_0, first start, compiled"]["value"] == 4
    assert found["tiny-q4_0, second start, compiled"]["value"] == 0
    assert found["tiny-q4_0, first start with 16 slots, decode"]["value"] > 0
    assert "tiny-q4_0, second start with 16 slots, decode_lean" not in found


def test_a_start_that_fails_says_why() -> None:
    result = run("compile", "-m", str(ROOT / "README.md"), "--repetitions", "1")
    assert result.exit_code == 1
    assert "README.md" in result.stderr


# Against the peer.


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    result = run("prefill", "-m", TINY, "--tokens", "15", "--peer", "llama.cpp")
    assert result.exit_code == 2
    assert "jaxllama[bench]" in result.stderr


def test_a_model_for_the_peer_needs_a_peer() -> None:
    result = run("prefill", "-m", TINY, "--peer-model", TINY)
    assert result.exit_code == 2
    assert "needs --peer" in result.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("decode", ("--slots", "3", "--tokens", "8", "--depth", "8")),
        (
            "prefill",
            (
                "--tokens",
                "24",
            ),
        ),
        ("sampling", ("--rows", "2", "--short")),
    ],
)
def test_the_peer_is_measured_on_the_same_file(name: str, arguments: tuple[str, ...]) -> None:
    pytest.importorskip("llama_cpp")
    with only(MEASURED):
        found = records(name, "-m", TINY, "--repetitions", "1", "--peer", "llama.cpp", *arguments)
    compared = [record for record in found.values() if "peer" in record]
    assert compared
    assert all(record["peer"] == "llama.cpp" for record in compared)
    if name != "sampling":  # samplers touch no weights
        assert all("buffers" in record["peer_setting"] for record in compared)


FAKE_PEER = """
import json, os, pathlib, signal
import llamacpp_worker

class Model:
    def __init__(self, path, *, extra_buffers, **sizes):
        self.extra, self.calls = extra_buffers, 0
        plans = json.loads(pathlib.Path(path).read_text())
        self.plan = plans["extra" if extra_buffers else "plain"]
        self.may_die("load")

    def may_die(self, where):
        if self.plan.get("dies") == where:
            os.kill(os.getpid(), signal.SIGILL)

    def vocab(self):
        return 512

    def fill(self, tokens):
        self.may_die("fill")

    def decode_rate(self, depth, count):
        self.may_die("decode")
        self.calls += 1
        return self.plan["rate"] + self.calls / 100

    def prompt_rate(self, tokens):
        return self.decode_rate(0, 1)

llamacpp_worker.MAKERS["model"] = Model
llamacpp_worker.main()
"""


@pytest.fixture
def fake_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Opens a peer whose process runs at these rates or dies at these places, by setting."""
    peers = module("llamacpp")
    monkeypatch.setattr(peers, "START", FAKE_PEER)
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(__spec__=SimpleNamespace()))

    def opened(**plan: Any) -> Any:
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        return peers.LlamaCppPeer(tmp_path / "plan.json", sequences=2, length=8, threads=1)

    return opened


@pytest.mark.parametrize("extra", [True, False])
def test_the_setting_reaches_llama_cpp(extra: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, seen = module("llamacpp_worker"), []

    def load(path: bytes, settings: Any) -> None:
        seen.append((path, settings.use_extra_bufts))

    bindings = SimpleNamespace(
        llama_model_default_params=lambda: SimpleNamespace(use_extra_bufts=True),
        llama_model_load_from_file=load,
    )
    monkeypatch.setattr(worker, "library", lambda: bindings)
    sizes = {"sequences": 1, "length": 8, "threads": 1, "flash": True}
    with pytest.raises(worker.PeerError, match="does not load"):
        worker.LlamaCppModel("file", **sizes, extra_buffers=extra)
    assert seen == [(b"file", extra)]


def test_bindings_that_cannot_switch_buffers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = module("llamacpp_worker")
    old = SimpleNamespace(llama_model_default_params=SimpleNamespace)
    monkeypatch.setattr(worker, "library", lambda: old)
    sizes = {"sequences": 1, "length": 8, "threads": 1, "flash": True}
    with pytest.raises(worker.PeerError, match=r"0\.3\.36 or newer"):
        worker.LlamaCppModel("file", **sizes, extra_buffers=True)


@pytest.mark.parametrize("faster", ["extra", "plain"])
def test_the_peer_is_measured_with_its_faster_setting(fake_peer: Any, faster: str) -> None:
    rates = {name: {"rate": 50.0 if name == faster else 10.0} for name in ("extra", "plain")}
    with fake_peer(**rates) as peer:
        assert peer.setting == "extra buffers or plain buffers"
        peer.fill([1, 2])
        assert [peer.decode_rate(2, 3) for _ in range(2)] == [50.04, 50.05]
        assert peer.setting == f"{faster} buffers"
        assert [worker.process.poll() for worker in peer.workers.values()] == [None]


@pytest.mark.parametrize("place", ["load", "fill", "decode"])
def test_a_setting_that_kills_the_peer_is_left_out_and_named(fake_peer: Any, place: str) -> None:
    with fake_peer(extra={"rate": 50.0, "dies": place}, plain={"rate": 10.0}) as peer:
        peer.fill([1, 2])
        assert peer.decode_rate(2, 3) == 10.04
        assert peer.setting == "plain buffers; with extra buffers it dies of SIGILL"


def test_a_peer_that_dies_with_every_setting_stops_the_benchmark(fake_peer: Any) -> None:
    dead = {"rate": 1.0, "dies": "decode"}
    with fake_peer(extra=dead, plain=dead) as peer, pytest.raises(Exception, match="SIGILL") as why:
        peer.decode_rate(2, 3)
    assert "with plain buffers it dies" in str(why.value)


def test_the_setting_of_the_peer_is_recorded(
    fake_peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = module("subject").Subject
    opened = [fake_peer(extra={"rate": 1.0, "dies": "decode"}, plain={"rate": 2.0})]
    monkeypatch.setattr(subject, "load_peer", lambda *_args, **_sizes: opened[0])
    arguments = ("-m", TINY, "--tokens", "15", "--repetitions", "1", "--peer", "llama.cpp")
    (found,) = records("prefill", *arguments).values()
    assert found["peer_setting"] == "plain buffers; with extra buffers it dies of SIGILL"
    assert found["peer_value"] == 2.05


def test_the_processes_of_the_peer_end_with_it(fake_peer: Any) -> None:
    with fake_peer(extra={"rate": 1.0}, plain={"rate": 2.0}) as peer:
        processes = [worker.process for worker in peer.workers.values()]
        assert [process.poll() for process in processes] == [None, None]
    assert [process.poll() for process in processes] == [0, 0]


def test_the_peer_draws_what_our_knobs_mean() -> None:
    pytest.importorskip("llama_cpp")
    chain = module("llamacpp").LlamaCppSamplers
    logits = np.array([[1.0, 3.0, 2.0, 0.0], [0.0, 1.0, 0.5, 4.0]], np.float32)
    with chain({}, logits, []) as greedy:
        assert greedy.sample() == [1, 3]
        assert greedy.sample() == [1, 3]
    with chain({"temperature": 1.0, "top_k": 1}, logits, []) as likeliest:
        assert likeliest.sample() == [1, 3]
    with chain({"repetition_penalty": 10.0}, logits, [1]) as weakened:
        assert weakened.sample() == [2, 3]
    with chain({"logit_bias": {0: 100.0}}, logits, []) as biased:
        assert biased.sample() == [0, 0]


# Figures.


def test_measures_take_turns_and_the_first_round_does_not_count() -> None:
    called: list[str] = []

    def measure(name: str) -> Any:
        def one() -> float:
            called.append(name)
            return float(len(called))

        return one

    found = module("harness").in_turn(2, measure("a"), None, measure("b"))
    assert called == ["a", "b"] * 3
    assert found == [[3.0, 5.0], [], [4.0, 6.0]]


@pytest.mark.parametrize(
    ("unit", "ratio"),
    [("tokens/s", 2.0), ("GB/s", 2.0), ("us/row", 0.5), ("s", 0.5)],
)
def test_a_ratio_above_one_means_faster(unit: str, ratio: float) -> None:
    harness = module("harness")
    board = harness.Board("some", as_json=False, short=False)
    board.environment = module("environment").Environment(**MACHINE)
    board.add("case", unit, [5.0, 100.0, 20.0], [10.0, 9.0, 11.0], harness.Peer("peer", "plain"))
    record = board.records[0]
    assert record.peer_label == "peer (plain)"
    assert (record.value, record.peer_value, record.ratio) == (20.0, 10.0, ratio)


class SteadyEngine:
    """Two tokens for every row in each step of one second, `late` steps after a row's turn."""

    def __init__(self, clock: SimpleNamespace, *, late: int) -> None:
        self.clock, self.late = clock, late
        self.rows: dict[int, list[int]] = {}  # steps to wait, tokens to come

    @property
    def idle(self) -> bool:
        return not self.rows

    def submit(self, request: Any) -> SimpleNamespace:
        number = len(self.rows)
        self.rows[number] = [number * self.late, request.max_tokens]
        return SimpleNamespace(id=number)

    def step(self) -> list[Any]:
        self.clock.now += 1.0
        return [event for number in list(self.rows) for event in self.advance(number)]

    def advance(self, number: int) -> Iterator[Any]:
        row = self.rows[number]
        if row[0]:
            row[0] -= 1
            return
        for _ in range(2):
            row[1] -= 1
            yield Token(number, 7, "")
        if not row[1]:
            del self.rows[number]
            yield Finished(number, FinishReason.LENGTH, Usage(1, 0, 0))


@pytest.mark.parametrize("late", [0, 1])
def test_decoding_is_timed_while_all_rows_run(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    crowd = module("crowd")
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(crowd, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    rate = crowd.decode_rate(SteadyEngine(clock, late=late), [[1], [2], [3]], 10)
    assert rate == 6.0


def test_a_failed_request_stops_the_benchmark() -> None:
    crowd = module("crowd")
    failed = Finished(0, FinishReason.FAILED, Usage(1, 0, 0))
    with pytest.raises(Exception, match="failed"):
        crowd.tokens_of([failed])


def test_prompts_of_a_crowd_share_all_but_their_last_token() -> None:
    prompts = module("crowd").prompts_of(100, 4, 6)
    assert len({tuple(prompt[:-1]) for prompt in prompts}) == 1
    assert len({prompt[-1] for prompt in prompts}) == 4


# Model files.


def test_benchmark_files_keep_the_contract_of_weights() -> None:
    check_weights(module("write_gguf").model_file(TINY))


def test_benchmark_files_are_made_once() -> None:
    files = module("write_gguf")
    made = files.model_file(TINY)
    before = made.stat().st_mtime_ns
    assert files.model_file(TINY) == made
    assert made.stat().st_mtime_ns == before
    assert [path for path in made.parent.iterdir() if path.suffix == ".part"] == []


def test_a_file_that_could_not_be_written_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    files = module("write_gguf")

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setitem(files.FILES, "broken", fail)
    with pytest.raises(OSError, match="disk full"):
        files.model_file("broken")
    folder = files.model_file(TINY).parent
    assert list(folder.glob("broken*")) == []


@pytest.mark.parametrize("name", ["Q4_0", "PURE_Q4_0", "Q8_0", "F16"])
def test_requantised_files_hold_the_same_model(name: str, tmp_path: Path) -> None:
    files = module("write_gguf")
    target, kinds = tmp_path / "other.gguf", getattr(files, name)
    files.write_random(files.TINY, tmp_path / "source.gguf", files.F16)
    files.requantise(tmp_path / "source.gguf", target, kinds)
    source, other = gguf.GGUFReader(tmp_path / "source.gguf"), gguf.GGUFReader(target)
    named, before = metadata(other), metadata(source)
    assert named.pop("general.file_type") == {"F16": 1, "Q4_0": 2, "Q8_0": 7}[kinds.layers.name]
    assert before.pop("general.file_type") == 1
    assert named == before
    steps = {"Q4_0": 0.126, "Q8_0": 0.005, "F16": 0.0, "F32": 0.0}  # an eighth, 1/254, nothing
    for one, two in zip(source.tensors, other.tensors, strict=True):
        assert one.name == two.name
        if len(two.shape) == 2:
            embedding = two.name == "token_embd.weight"
            assert two.tensor_type is (kinds.embedding if embedding else kinds.layers)
        first, second = (dequantize(each.data, each.tensor_type) for each in (one, two))
        step = steps[two.tensor_type.name] * np.abs(first).max()
        assert np.abs(first - second).max() <= step


def metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


# The report.


def lines(found: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in found)


def test_the_report_is_a_table_of_all_records() -> None:
    report = module("report")
    table = report.markdown(report.read(lines(RECORDS).splitlines()))
    assert table.splitlines()[2:] == [
        "| decode | m, 1 slot, depth 64 | 20 | tokens/s | llama.cpp | 10 | 2.00x | 1 |",
        "| decode | m, 4 slots, depth 64 | 60 | tokens/s | llama.cpp | 15 | 4.00x | 1 |",
        "| machine | read, 1 thread | 22.5 | GB/s |  |  |  | 1 |",
        "",
        "| environment | backend | device | devices | commit | jax | jaxlib | threads | mesh "
        "| dtype | cache dtype | kernels |",
        "| ---: | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | cpu | some processor | 1 | 0123456789ab | 1.0 | 1.1 | 2 |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "gpu", "device": "some GPU"},
        {"devices": 8, "mesh": "data=8,model=1"},
        {"dtype": "bfloat16"},
        {"cache_dtype": "int8"},
        {"kernels": "xla"},
        {"commit": "ba9876543210"},
        {"jax": "1.2"},
        {"threads": 1},
    ],
)
def test_the_report_keeps_environments_apart(other: dict[str, Any]) -> None:
    report = module("report")
    elsewhere = [record | other | {"value": 5.0} for record in RECORDS]
    kept = report.newest(report.read(lines([*RECORDS, *elsewhere]).splitlines()))
    assert [record.value for record in kept] == [20.0, 60.0, 22.5, 5.0, 5.0, 5.0]
    table = report.markdown(kept).splitlines()
    assert [line.split(" | ")[-1] for line in table[2:8]] == ["1 |"] * 3 + ["2 |"] * 3
    assert [
        {each: one for each, (one, _) in curve.items()} for curve in report.curves(kept).values()
    ] == [
        {1: 20.0, 4: 60.0},
        {1: 5.0, 4: 5.0},
    ]


def test_the_report_keeps_the_newest_record_of_a_case() -> None:
    report = module("report")
    again = RECORDS[0] | {"value": 30.0}
    kept = report.newest(report.read(lines([*RECORDS, again]).splitlines()))
    assert [record.value for record in kept] == [30.0, 60.0, 22.5]


def test_the_report_joins_cases_by_their_slots() -> None:
    report = module("report")
    curves = report.curves(report.read(lines(RECORDS).splitlines()))
    assert list(curves.values()) == [{1: (20.0, 10.0), 4: (60.0, 15.0)}]


def test_the_report_joins_every_figure_of_a_server_by_its_streams() -> None:
    report = module("report")
    found = [
        {"bench": "serve", "case": f"m, {count}, 8+8 tokens{tail}", "value": 1.0, "unit": unit}
        | MACHINE
        for count in ("1 stream", "16 streams")
        for tail, unit in (("", "tokens/s"), (", first token, p99", "ms"))
    ]
    assert list(report.curves(report.read(lines(found).splitlines()))) == [
        ("serve: m, by streams, 8+8 tokens", "streams", "tokens/s"),
        ("serve: m, by streams, 8+8 tokens, first token, p99", "streams", "ms"),
    ]


def test_the_report_draws_ratios_and_curves(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text(lines(RECORDS))
    result = run("report", str(tmp_path / "run.jsonl"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out/report.md").read_text()
    for plot in ("ratios.svg", "slots-0.svg"):
        assert plot in text
        assert "<svg" in (tmp_path / "out" / plot).read_text()


@pytest.mark.parametrize("line", ["not json", '{"bench": "decode"}', '{"surplus": 1}', "[1]"])
def test_the_report_refuses_lines_that_are_no_records(line: str, tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text(line)
    result = run("report", str(tmp_path / "run.jsonl"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "no record" in result.stderr


def test_a_record_survives_being_printed_and_read() -> None:
    harness, report = module("harness"), module("report")
    where = module("environment").Environment(**MACHINE, mesh="data=1,model=1")
    record = harness.Record("decode", "case", 1.25, "tokens/s", where, "peer", 0.5, 2.5, "plain")
    (again,) = report.read([json.dumps(record.fields())])
    assert dataclasses.asdict(again) == dataclasses.asdict(record)


# The history.


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module, with its files in a folder of the test."""
    found = module("history")
    for name, path in (("HISTORY", "h.jsonl"), ("PAGE", "page.md"), ("PICTURES", "pictures")):
        monkeypatch.setattr(found, name, tmp_path / path)
    return found


def test_the_page_is_that_of_the_history() -> None:
    history = module("history")
    page, pictures = history.page_of(history.records())
    assert page == history.PAGE.read_text(encoding="utf-8"), "run: python bench/history.py"
    assert {path.name for path in history.PICTURES.glob("*.svg")} == set(pictures)
    for name, drawn in pictures.items():
        assert (history.PICTURES / name).read_text(encoding="utf-8") == drawn, name
        assert f"images/benchmarks/{name}" in page


def test_figures_are_appended_and_shown_by_commit(history: ModuleType, tmp_path: Path) -> None:
    for commit, value in (("0123456789ab", 20.0), ("ba9876543210", 30.0)):
        new = [record | {"commit": commit} for record in RECORDS]
        new[0] = new[0] | {"value": value, "load": 0.2}
        (tmp_path / "new.jsonl").write_text(lines(new))
        result = run("history", str(tmp_path / "new.jsonl"))
        assert result.exit_code == 0, result.output
    assert len(history.HISTORY.read_text().splitlines()) == 2 * len(RECORDS)
    page = history.PAGE.read_text()
    assert "## some processor, 2 threads" in page
    row = "| m, 1 slot, depth 64 | 30 | tokens/s | llama.cpp | 10 | 2.00x | 0.2 | ba9876543210 |"
    assert row in page and "0123456789ab" not in page
    drawn = (history.PICTURES / "some-processor-2-threads-decode-history-tokens-s.svg").read_text()
    assert "0123456" in drawn and "ba98765" in drawn
    run("history")
    assert history.PAGE.read_text() == page  # nothing was appended


@pytest.mark.parametrize("commit", ["0123456789ab+changes", "unknown"])
def test_figures_of_no_commit_are_refused(history: ModuleType, tmp_path: Path, commit: str) -> None:
    (tmp_path / "new.jsonl").write_text(lines([RECORDS[0] | {"commit": commit}]))
    result = run("history", str(tmp_path / "new.jsonl"))
    assert result.exit_code == 2 and "which is no commit" in result.stderr
    assert not history.HISTORY.exists()


@pytest.mark.parametrize(
    ("most", "end", "step"),
    [(9.0, 10.0, 2.0), (10.0, 10.0, 2.0), (0.34, 0.4, 0.1), (0.0, 0.2, 0.2)],
)
def test_an_axis_ends_at_a_round_number(most: float, end: float, step: float) -> None:
    assert module("plot").ceiling(most) == pytest.approx((end, step))


def test_a_plot_is_xml_whatever_the_names_are() -> None:
    plot = module("plot")
    for drawn in (
        plot.bars("<&>", ['a "b" <c>', "d"], [0.5, 20.0], mark=1.0),
        plot.bars("alone", ["x" * 200], [1.0]),
        plot.lines("<t>", "u & v", ["<1>", "2"], [plot.PlotLine("<n>", [1.0, None])]),
    ):
        root = ElementTree.fromstring(drawn)
        assert root.tag.endswith("svg")


def test_classifying_measures_questions_together_and_apart() -> None:
    asked = ("-m", TINY, "--tokens", "20", "--questions", "6", "--repetitions", "1")
    (found,) = records("classify", *asked).values()
    assert found["peer"] == "separate prompts"
    assert found["value"] > 0
    assert found["ratio"] > 0
