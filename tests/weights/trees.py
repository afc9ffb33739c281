"""Trees of weights: random ones, and what a checkpoint gives, compared to the last bit.

Called by the tests of readers in this folder.
"""

import ml_dtypes
import numpy as np
from writers import flatten

from jaxllama.config import ModelConfig
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.model.params import abstract_params
from jaxllama.testing import random_params
from jaxllama.weights.base import Checkpoint, fill


def random_weights(config: ModelConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random weights by dotted path, of values that `dtype` holds exactly, in float32."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    flat = flatten(random_params(config))
    return {path: value.astype(kind).astype(np.float32) for path, value in flat.items()}


def read_all(checkpoint: Checkpoint) -> dict[str, np.ndarray | Packed]:
    """Every weight by dotted path, through `fill`."""
    seen = {}

    def place(path: str, _leaf: object, value: np.ndarray | Packed) -> object:
        seen[path] = value
        return value

    fill(abstract_params(checkpoint.config), checkpoint, place)
    return seen


def assert_same(found: dict[str, np.ndarray | Packed], expected: dict[str, np.ndarray]) -> None:
    """Same paths, same values to the last bit."""
    assert found.keys() == expected.keys()
    for path, value in found.items():
        rows = value
        if isinstance(value, Packed):
            rows = dense_of(value).T if path == "embed.weight" else dense_of(value)
        np.testing.assert_array_equal(np.asarray(rows, np.float32), expected[path], err_msg=path)
