"""The memory that `inspect` states for the weights is what loading takes, for every format."""

from collections.abc import Mapping
from pathlib import Path

import jax
import pytest
from every_format import FORMATS
from writers import flatten, gguf_vocabulary, write_gguf

from jaxllama.cli.memory import weight_bytes
from jaxllama.kernels.cpu import library
from jaxllama.loading import engine_config, read_weights
from jaxllama.sharding import make_mesh
from jaxllama.testing import random_params, tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.convert import Recipe, convert

CONFIG = tiny(name="one", kv_heads=2)
WEIGHTS = flatten(random_params(CONFIG))
WIDE = tiny(name="wide", vocab_size=4100, width=256, heads=4, kv_heads=2, head_dim=64,
            ffn_width=512, layers=3, tied=False)  # fmt: skip
HERE = pytest.mark.skipif(not library.available(), reason=library.why_not())
BODIES = [
    pytest.param("cpu", False, id="cpu", marks=HERE),
    pytest.param("xla", False, id="xla"),
    pytest.param("xla", True, id="xla packed"),
]


def stated_and_taken(path: Path, body: str, *, packed: bool) -> tuple[int, int]:
    with open_checkpoint(path) as checkpoint:
        engine = engine_config(checkpoint.config, body, packed=packed)
        stated = weight_bytes(checkpoint, engine)
        params = read_weights(checkpoint, engine, make_mesh(engine, checkpoint.config), None)
    return stated, sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("body", "packed"), BODIES)
@pytest.mark.parametrize("name", FORMATS)
def test_of_every_format(tmp_path: Path, name: str, body: str, packed: bool):
    path, _ = FORMATS[name].write(tmp_path, CONFIG, WEIGHTS)
    stated, taken = stated_and_taken(path, body, packed=packed)
    assert stated == taken


MIXES: dict[str, str | Mapping[str, str]] = {
    "as Q4_K_M": {"v": "Q6_K", "down": "Q6_K", "embed": "Q6_K", "": "Q4_K"},
    "gate and up differ": {"up": "Q6_K", "": "Q4_K"},
    "Q5_K": "Q5_K",
    "Q2_K": "Q2_K",
    "IQ4_XS": "IQ4_XS",
}


@pytest.mark.parametrize(("body", "packed"), BODIES)
@pytest.mark.parametrize("mix", MIXES)
def test_of_mixed_types(tmp_path: Path, mix: str, body: str, packed: bool):
    path = tmp_path / "m.gguf"
    metadata = gguf_vocabulary(WIDE.vocab_size)
    write_gguf(path, WIDE, flatten(random_params(WIDE)), kind=MIXES[mix], metadata=metadata)
    stated, taken = stated_and_taken(path, body, packed=packed)
    assert stated == pytest.approx(taken, rel=0.01)  # the vocabulary is no whole number of tiles


@pytest.mark.parametrize(("body", "packed"), BODIES)
@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16"])
def test_of_our_own_checkpoints(tmp_path: Path, dtype: str, body: str, packed: bool):
    source, _ = FORMATS["Hugging Face float32"].write(tmp_path, CONFIG, WEIGHTS)
    convert(source, tmp_path / "native", Recipe(dtype), progress=lambda *_: None)
    stated, taken = stated_and_taken(tmp_path / "native", body, packed=packed)
    assert stated == taken
