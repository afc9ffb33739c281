"""From canonical weights to what the kernels read."""

import dataclasses

import numpy as np
import pytest

from jaxllama.kernels import cpu
from jaxllama.kernels.tiled import untile
from jaxllama.model.params import abstract_params
from jaxllama.model.prepare import Preparation, dense
from jaxllama.model.quantized import Packed
from jaxllama.sharding import make_mesh
from tests.support import KERNELS, MODEL

WIDE = dataclasses.replace(MODEL, width=64)


def some_packed(bits: int, inward: int, outward: int) -> Packed:
    rng = np.random.default_rng(bits)
    shape = (outward, inward // 2 if bits == 4 else inward)
    low, high, kind = (0, 256, np.uint8) if bits == 4 else (-128, 128, np.int8)
    scales = rng.random((outward, inward // 32)).astype(np.float16)
    return Packed(rng.integers(low, high, shape, kind), scales, None, bits, 32)


@pytest.mark.skipif(not cpu.available(), reason=cpu.why_not())
@pytest.mark.parametrize("mixed", ["dense", "eight bits", "nothing"])
def test_parts_of_different_kinds_are_fused_exactly(mixed):
    """Files often keep v in more bits than q and k."""
    leaves = abstract_params(WIDE)
    preparation = Preparation(leaves, KERNELS, make_mesh(KERNELS, WIDE))
    parts = {}
    for name in "qkv":
        path = f"blocks.0.attention.{name}.weight"
        inward, outward = leaves[path].shape
        value = some_packed(4, inward, outward)
        if name == "v" and mixed == "dense":
            value = np.random.default_rng(0).random((inward, outward), np.float32)
        elif name == "v" and mixed == "eight bits":
            value = some_packed(8, inward, outward)
        parts[name] = value
        preparation.add(path, leaves[path], value)
    fused = preparation.tree()["blocks"][0]["attention"]["qkv"]["weight"]
    expected = [dense(part) if isinstance(part, Packed) else part for part in parts.values()]
    assert np.array_equal(untile(fused), np.concatenate(expected, axis=1))
    assert fused.kind == ("q4" if mixed == "nothing" else "f32")
