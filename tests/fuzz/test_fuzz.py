"""Mutations of every reader's files: one declared error, bounded time and memory, no code run."""

import tracemalloc
from pathlib import Path
from random import Random

import pytest

from jaxllama.errors import CheckpointError
from jaxllama.registry import WEIGHTS, load_plugins
from jaxllama.weights.base import Checkpoint
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Bench, bounded

RUNS = 100  # `python -m tests.fuzz` tries more


@pytest.mark.parametrize("name", TARGETS)
def test_sound_models_are_read(tmp_path: Path, name: str):
    bench = Bench(name, tmp_path)
    for model, raw in zip(bench.models, bench.sound, strict=True):
        bench.use(model)
        assert bench.attempt(raw) is None, model.name


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_read_or_refused(tmp_path: Path, name: str):
    bench, refused = Bench(name, tmp_path), 0
    tracemalloc.start()
    try:
        for run in range(RUNS):
            raw = mutated(bench.sound, Random(f"{name} {run}"))
            with bounded(raw):
                error = bench.attempt(raw)
            assert error is None or len(str(error)) < 20_000
            refused += error is not None
    finally:
        tracemalloc.stop()
    assert refused > RUNS / 4


def test_every_reader_has_a_target():
    readers = load_plugins(WEIGHTS, Checkpoint).loaded.values()
    assert {reader.__name__ for reader in readers if reader.__module__.startswith("jaxllama.")} == {
        target.reader.__name__ for target in TARGETS.values()
    }


def test_the_bound_on_memory_can_be_broken():
    tracemalloc.start()
    try:
        with pytest.raises(AssertionError, match="bytes of memory"), bounded(b""):
            bytearray(20 << 20)
    finally:
        tracemalloc.stop()
    assert issubclass(CheckpointError, Exception)
