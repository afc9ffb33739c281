"""One model in every format: the same configuration, weights and logits through all."""

from pathlib import Path

import numpy as np
import pytest
from every_format import FORMATS
from writers import flatten

from jaxllama.kernels.packed import Packed
from jaxllama.model.params import Leaf, abstract_params, nest
from jaxllama.testing import check_weights, random_params, tiny
from jaxllama.testing.numpy_llama import logits
from jaxllama.weights import open_checkpoint
from jaxllama.weights.stored import unpacked

CONFIG = tiny(name="one", kv_heads=2)
WEIGHTS = flatten(random_params(CONFIG))
TOKENS = [1, 17, 200, 5, 5, 91]
AMPLIFIED = 10.0  # error of the logits over that of the weights; 4 to 8 were measured


def dense(path: str, leaf: Leaf, value: np.ndarray | Packed) -> np.ndarray:
    """A weight in canonical layout, float32, whatever it is kept in."""
    if isinstance(value, Packed):
        assert leaf.is_matrix
        return unpacked(value) if path == "embed.weight" else unpacked(value).T
    return value.astype(np.float32)


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square of the difference, relative to the wanted values."""
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_the_contract_of_readers(tmp_path: Path, name: str):
    check_weights(FORMATS[name].write(tmp_path, CONFIG, WEIGHTS)[0])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_logits(tmp_path: Path, name: str):
    path, held = FORMATS[name].write(tmp_path, CONFIG, WEIGHTS)
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        read = {
            where: (leaf, checkpoint.read(where, leaf))
            for where, leaf in abstract_params(config).items()
        }
    for field in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width"):
        assert getattr(config, field) == getattr(CONFIG, field), field
    assert {where for where, (_, value) in read.items() if isinstance(value, Packed)} == {
        where
        for where, (leaf, _) in read.items()
        if leaf.is_matrix and FORMATS[name].is_packed and where not in FORMATS[name].dense
    }
    found = {where: dense(where, leaf, value) for where, (leaf, value) in read.items()}
    of_reader, of_writer, of_model = (
        logits(config, nest(weights), TOKENS) for weights in (found, held, WEIGHTS)
    )
    np.testing.assert_allclose(of_reader, of_writer, rtol=1e-6, atol=1e-6)
    largest = max(difference(held[where], WEIGHTS[where]) for where in WEIGHTS)
    assert largest <= FORMATS[name].error
    assert difference(of_reader, of_model) <= AMPLIFIED * FORMATS[name].error + 1e-6


def test_the_bound_on_logits_can_be_broken():
    moved = WEIGHTS | {"final_norm.weight": -WEIGHTS["final_norm.weight"]}
    found, wanted = (logits(CONFIG, nest(each), TOKENS) for each in (moved, WEIGHTS))
    assert difference(found, wanted) > AMPLIFIED * max(each.error for each in FORMATS.values())
