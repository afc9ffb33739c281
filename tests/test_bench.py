"""Every benchmark runs on a tiny model and prints records that say what they should.

Nothing here looks at how long anything took.
"""

import dataclasses
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf.quants import dequantize

from jaxllama.kernels.cpu import library
from jaxllama.request import Finished, FinishReason, Token, Usage
from jaxllama.testing import check_weights
from tests.support import only

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
TINY = "tiny-q4_0"
SCRIPTS = sorted(
    path.stem for path in BENCH.glob("*.py") if '__name__ == "__main__"' in path.read_text()
)
pytestmark = pytest.mark.usefixtures("no_samplers")

MEASURED = ("logit_bias", "min_p", "repetition", "top_k", "top_p")  # samplers
PEER_KEYS = {"peer", "peer_value", "ratio"}
KEYS = {"bench", "case", "value", "unit"}
RECORDS = [
    {"bench": "decode", "case": "m, 1 slot, depth 64", "value": 20.0, "unit": "tokens/s"}
    | {"peer": "llama.cpp", "peer_value": 10.0, "ratio": 2.0},
    {"bench": "decode", "case": "m, 4 slots, depth 64", "value": 60.0, "unit": "tokens/s"}
    | {"peer": "llama.cpp", "peer_value": 15.0, "ratio": 4.0},
    {"bench": "machine", "case": "read, 1 thread", "value": 22.5, "unit": "GB/s"},
]


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one run: its processes share what they compile."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bench-caches"


@pytest.fixture(scope="module", autouse=True)
def quick_programs() -> Iterator[None]:
    """They run for milliseconds: compiling them well would take most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in other processes, too
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
    assert record.keys() in (KEYS, KEYS | PEER_KEYS)
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
    ],
)
def test_the_check_of_records_can_fail(wrong: dict[str, Any]) -> None:
    right = RECORDS[-1]
    check_record("machine", right)
    with pytest.raises(AssertionError):
        check_record("machine", right | wrong)


def test_make_bench_runs_every_script_that_measures() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = re.search(r"^BENCHES := (.*)$", makefile, re.MULTILINE)
    assert listed is not None
    assert set(SCRIPTS) - set(listed[1].split()) == {"report", "write_gguf"}


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


def few() -> tuple[str, ...]:
    return ("--repetitions", "1", "--tokens", "8", "--depth", "8")


def test_serving_is_held_against_the_engine_alone() -> None:
    asked = ("-m", TINY, "--repetitions", "1", "--slots", "2", "--tokens", "4", "--prompt", "4")
    found = records("serve", *asked, "--overhead")
    (whole, *added) = found.values()
    assert (whole["peer"], whole["unit"]) == ("the engine alone", "s")
    assert [each["unit"] for each in added] == ["%", "%"]


def test_prefill_never_finds_its_prompt_in_the_cache() -> None:
    found = records("prefill", "-m", TINY, "--tokens", "15", "--repetitions", "2")
    assert list(found) == ["tiny-q4_0, 15 tokens"]


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


def test_memory_tells_the_peak_of_loading_and_the_growth_of_decoding() -> None:
    found = records("memory", "-m", TINY, "--steps", "20")
    assert [record["unit"] for record in found.values()] == ["MiB", "x", "MiB", "MiB"]
    assert "tiny-q4_0, 4 slots, growth over 20 steps" in found
    assert "tiny-q4_0, 4 slots, growth over 20 steps, in their second half" in found


def test_a_cold_start_compiles_every_program_and_a_warm_one_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XLA_FLAGS")  # one device is enough
    found = records("compile", "-m", TINY, "--repetitions", "1")
    assert found["tiny-q4_0, cold start, compiled"]["value"] > 0
    assert found["tiny-q4_0, warm start, compiled"]["value"] == 0


def test_a_start_that_fails_says_why() -> None:
    result = run("compile", "-m", str(ROOT / "README.md"), "--repetitions", "1")
    assert result.exit_code == 1
    assert "README.md" in result.stderr


# Against the peer.


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    module("llamacpp").library.cache_clear()
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


def test_the_peer_draws_what_our_knobs_mean() -> None:
    pytest.importorskip("llama_cpp")
    chain = module("llamacpp").Chain
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
    board = module("harness").Board("some", as_json=False, short=False)
    board.add("case", unit, [5.0, 100.0, 20.0], [10.0, 9.0, 11.0], "peer")
    record = board.records[0]
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
        crowd.taken([failed])


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
    assert metadata(other) == metadata(source)
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
        "| decode | m, 1 slot, depth 64 | 20 | tokens/s | llama.cpp | 10 | 2.00x |",
        "| decode | m, 4 slots, depth 64 | 60 | tokens/s | llama.cpp | 15 | 4.00x |",
        "| machine | read, 1 thread | 22.5 | GB/s |  |  |  |",
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
        for count in ("1 stream", "16 streams")
        for tail, unit in (("", "tokens/s"), (", first token, p99", "ms"))
    ]
    assert list(report.curves(report.read(lines(found).splitlines()))) == [
        ("serve: m, by streams, 8+8 tokens", "streams", "tokens/s"),
        ("serve: m, by streams, 8+8 tokens, first token, p99", "streams", "ms"),
    ]


def test_the_report_draws_ratios_and_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
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
    record = harness.Record("decode", "case", 1.25, "tokens/s", "peer", 0.5, 2.5)
    (again,) = report.read([json.dumps(record.fields())])
    assert dataclasses.asdict(again) == dataclasses.asdict(record)


def test_classifying_measures_questions_together_and_apart() -> None:
    asked = ("-m", TINY, "--tokens", "20", "--questions", "6", "--repetitions", "1")
    (found,) = records("classify", *asked).values()
    assert found["peer"] == "separate prompts"
    assert found["value"] > 0
    assert found["ratio"] > 0
