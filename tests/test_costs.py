"""The costs of a model on chips follow from its shape and the chips' data sheets."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from jaxllama.chips import CHIPS

BENCH = Path(__file__).parents[1] / "bench"


def test_costs_of_a_model_are_those_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    costs, h100 = importlib.import_module("costs"), CHIPS["h100"]
    one = costs.Costs(costs.MODELS["Llama-3.1-8B"], h100)
    assert one.weight_bytes == pytest.approx(16.06e9, rel=0.01)
    assert one.token_bytes == 2 * 32 * 8 * 128 * 2
    assert one.step(1, 0) == pytest.approx(2 * 7.5e9 / 3.35e12, rel=0.01)
    assert one.sending(16) == 0
    four = dataclasses.replace(one, parts=4)
    payload = 16 * 4096 * 4
    ring = 6 * (payload / 4 / h100.link + costs.HOP_SECONDS)
    assert four.sending(16) == pytest.approx(65 * ring)
    assert four.reading(16, 100) == pytest.approx(one.reading(16, 100) / 4)
    assert four.slots(4096) > 4 * one.slots(4096) > 0
    assert dataclasses.replace(one, model=costs.MODELS["Llama-3.1-70B"]).slots(4096) < 0
    assert not dataclasses.replace(one, parts=16).can_split


def test_every_chip_reads_memory_faster_than_its_link() -> None:
    for name, chip in CHIPS.items():
        assert 0 < chip.link < chip.bandwidth < chip.flops <= chip.int8_ops, name
