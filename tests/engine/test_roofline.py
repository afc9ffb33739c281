"""What decode steps achieve: bytes and operations per second, and shares of a known chip."""

import dataclasses
import math

import pytest

from jaxllama.chips import CHIPS
from jaxllama.config import Experts
from jaxllama.engine import programs as module
from jaxllama.model.params import abstract_params
from jaxllama.testing import FAMILIES
from tests.support import ENGINE, programs

TIED = FAMILIES["llama3"]
MODELS = [TIED, dataclasses.replace(TIED, tied=not TIED.tied), FAMILIES["qwen3"]]


@pytest.mark.parametrize("model", MODELS, ids=["as it is", "the other way", "qwen3"])
def test_a_token_is_multiplied_by_every_matrix_but_an_embedding(model):
    leaves = abstract_params(model)
    matrices = sum(math.prod(leaf.shape) for leaf in leaves.values() if leaf.is_matrix)
    assert model.parameters == matrices
    embedding = 0 if model.tied else model.vocab_size * model.width
    assert model.parameters_per_token == matrices - embedding


def test_of_experts_a_token_uses_a_few():
    model = dataclasses.replace(TIED, experts=Experts(count=8, used=2, width=32))
    embedding = 0 if model.tied else model.vocab_size * model.width
    unused = 6 * model.layers * 3 * model.width * 32
    assert model.parameters - model.parameters_per_token == unused + embedding


def test_shares_are_those_of_the_chip(monkeypatch):
    made = programs(TIED, ENGINE)
    assert set(made.roofline(0.0, 1)) == {"weight_bytes_per_second", "flops_per_second"}
    chip = CHIPS["h100"]
    monkeypatch.setattr(module, "chip_of", lambda _: chip)
    found = made.roofline(0.5, 4)
    assert found["weight_bytes_per_second"] == made.weight_bytes / 0.5
    assert found["flops_per_second"] == 2 * TIED.parameters_per_token * 4 / 0.5
    assert found["bandwidth_share"] == found["weight_bytes_per_second"] / chip.bandwidth
    assert found["flops_share"] == found["flops_per_second"] / chip.flops
