"""Mutations for every reader: one declared error, bounded time and memory, no code run."""

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from jaxllama.errors import CheckpointError
from jaxllama.registry import DIALECTS, TOKENIZERS, WEIGHTS, load_plugins
from jaxllama.serve.dialect import Dialect
from jaxllama.text.reader import TokenizerReader
from jaxllama.weights.base import Checkpoint
from tests.fuzz import texts, wire
from tests.fuzz.__main__ import attempt
from tests.fuzz.benches import NAMES, Bench, open_bench
from tests.fuzz.mutate_json import mutated_json, places
from tests.fuzz.targets import TARGETS, bounded
from tests.serve.dialects import everyone

RUNS = 100  # `make fuzz` tries more
FEW = 8  # of inputs that take long: connections that wait, large files, processes
SLOW = {*texts.TOKENIZERS, "tokenizer_json", "regex", "http", *wire.SOCKETS}
NEVER_REFUSED = {"answer", *wire.SOCKETS}  # there is nothing to refuse, or no status that says so


@contextlib.contextmanager
def opened(name: str, folder: Path) -> Iterator[Bench]:
    """The bench of a target, with memory traced."""
    tracemalloc.start()
    try:
        with contextlib.closing(open_bench(name, folder)) as bench:
            yield bench
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TARGETS])
def test_sound_inputs_are_read_and_mutations_read_or_refused(tmp_path: Path, name: str) -> None:
    with opened(name, tmp_path) as bench:
        refused = [bench.attempt(raw) for raw in bench.sound]
        assert refused.count(None) > len(refused) / 3, refused  # some need what is not there
        runs, refusals = FEW if name in SLOW else RUNS, 0
        for run in range(runs):
            refusals += attempt(bench, bench.changed(Random(f"{name} {run}"))) is not None
    assert refusals > runs / 20 or name in NEVER_REFUSED


@pytest.mark.parametrize("name", TARGETS)
def test_sound_models_are_read(tmp_path: Path, name: str) -> None:
    bench = open_bench(name, tmp_path)
    for model, raw in zip(bench.models, bench.sound, strict=True):
        bench.use(model)
        assert bench.attempt(raw) is None, model.name


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_read_or_refused(tmp_path: Path, name: str) -> None:
    refused = 0
    with opened(name, tmp_path) as bench:
        for run in range(RUNS):
            error = attempt(bench, bench.changed(Random(f"{name} {run}")))
            assert error is None or len(str(error)) < 20_000
            refused += error is not None
    assert refused > RUNS / 4


def test_every_reader_of_models_has_a_target() -> None:
    readers = load_plugins(WEIGHTS, Checkpoint).loaded.values()
    assert {reader.__name__ for reader in readers if reader.__module__.startswith("jaxllama.")} == {
        target.reader.__name__ for target in TARGETS.values()
    }


def test_every_reader_of_tokenizers_has_a_target() -> None:
    targets = {"huggingface": "tokenizer_json", "llama2c": "tokenizer_llama2c"}
    for name in load_plugins(TOKENIZERS, TokenizerReader).loaded:
        assert targets.get(name, name) in NAMES  # that of GGUF files is the target of their models


def test_every_dialect_has_a_target_with_all_its_bodies() -> None:
    assert set(wire.bodies()) == set(load_plugins(DIALECTS, Dialect).loaded)
    for dialect in everyone():
        lines = {line.partition("?")[0] for line, _ in wire.bodies()[dialect.name]}
        for endpoint in dialect.endpoints:
            if endpoint.body is not None:
                line = f"{endpoint.method} {endpoint.plain_path.replace('{room}', 'x')}"
                assert line in lines, line


def test_every_change_of_json_is_made_of_known_parts() -> None:
    sound = {"a": [1, {"b": None}], "c": "d"}
    assert len(places([sound])) == 6
    found = [mutated_json(sound, [sound], Random(each)) for each in range(50)]
    assert sound == {"a": [1, {"b": None}], "c": "d"}
    assert sum(each != sound for each in found) > 40


def test_the_bound_on_memory_can_be_broken() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(AssertionError, match="bytes of memory"), bounded(b""):
            bytearray(20 << 20)
    finally:
        tracemalloc.stop()
    assert issubclass(CheckpointError, Exception)


def test_an_answer_of_500_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(open_bench("dialect_native", tmp_path)) as bench:
        told = b"HTTP/1.1 500 Internal Server Error\r\n\r\n"
        monkeypatch.setattr(bench, "exchange", lambda *_, **__: told)
        with pytest.raises(AssertionError, match="500"):
            bench.attempt(b"x")
