"""Float8 weights: finds the scales beside a matrix and multiplies them in.

Called by the Hugging Face reader. A scale belongs to the whole matrix, to each row, or to each
block; makers call it `weight_scale` or `weight_scale_inv`, and both multiply. The result is
float32. Knows names of scales, no model.
"""

from collections.abc import Mapping

import numpy as np

from jaxllama.errors import BadTensors, UnsupportedModel
from jaxllama.weights.fields import CheckedFields, shown
from jaxllama.weights.stored import Index, Shape

FLOAT8 = ("F8_E4M3", "F8_E5M2")  # names in safetensors
SCALES = ("_scale_inv", "_scale")  # after the name of a matrix
# Scales of rounded activations and caches, which are not rounded here.
UNUSED = (".input_scale", ".input_scale_ub", ".output_scale", ".k_scale", ".v_scale", ".kv_scale")
METHODS = ("fp8", "fbgemm_fp8", "modelopt", "compressed-tensors")
FORMATS = ("float-quantized", "naive-quantized")  # of compressed-tensors that may hold float8
USUAL_BLOCK = (128, 128)
ONE: tuple[Shape, ...] = ((), (1,), (1, 1))  # shapes of a single scale


def is_float8_method(method: CheckedFields) -> bool:
    """Say whether `method`, the quantization_config of config.json, means float8 weights."""
    name = method.text("quant_method", "")
    if name == "compressed-tensors":
        return method.text("format", "") in FORMATS
    return name in METHODS


def read_block(fields: CheckedFields) -> tuple[int, int]:
    """Return how many rows and columns a block has; the weights of one block share a scale.

    `fields` are those of config.json.
    """
    stated = fields.inner("quantization_config").items("weight_block_size")
    match stated:
        case []:
            return USUAL_BLOCK
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise UnsupportedModel(
        f"{fields.where}: weight_block_size is {shown(stated)}; expected two positive numbers"
    )


def scale_of(name: str, names: Mapping[str, object]) -> str | None:
    """Return the name of the tensor that holds the scales of matrix `name`; None if it has none.

    `names` has the names of all tensors as keys.
    """
    return next((name + ending for ending in SCALES if name + ending in names), None)


def is_scale(name: str, dtypes: Mapping[str, str]) -> bool:
    """Say whether the tensor `name` holds scales: of a float8 matrix, activations or a KV cache.

    `dtypes` has the element type of every tensor, by name.
    """
    stems = (name.removesuffix(ending) for ending in SCALES if name.endswith(ending))
    return name.endswith(UNUSED) or any(dtypes.get(stem) in FLOAT8 for stem in stems)


def check_scale(name: str, scale: Shape, shape: Shape, block: tuple[int, int]) -> None:
    """Raise BadTensors unless scales of shape `scale` fit the matrix `name` of shape `shape`.

    A matrix may have one scale, one for each row, or one for each block; `block` is the number of
    rows and of columns in a block.
    """
    blocks = tuple(-(-size // each) for size, each in zip(shape, block, strict=False))
    if len(shape) != len(block) or scale not in (*ONE, *per_row(shape), blocks):
        raise BadTensors(
            f"the scales of {shown(name)} {list(shape)} have shape {list(scale)}; expected one, "
            f"one for each row, or {list(blocks)} for blocks of {list(block)}"
        )


def per_row(shape: Shape) -> tuple[Shape, Shape]:
    """Return the two shapes that the scales of a matrix may have if each row has its own scale.

    `shape` is the shape of the matrix.
    """
    return shape[:1], (*shape[:1], 1)


def scaled(
    values: np.ndarray, scale: np.ndarray, index: Index, shape: Shape, block: tuple[int, int]
) -> np.ndarray:
    """Return part `index` of a matrix, in float32: `values`, the stored part, times its scales.

    `scale` has the scales of the whole matrix, whose shape is `shape`; `block` is the number of
    rows and of columns that share a scale.
    """
    rows, columns = (np.arange(each.start, each.stop) for each in index)
    factors = scale.astype(np.float32)
    result = values.astype(np.float32)
    with np.errstate(all="ignore"):  # damaged scales may be NaN; the engine checks for that
        if scale.shape in ONE:
            result *= factors.reshape(())
        elif scale.shape in per_row(shape):
            result *= factors.reshape(-1, 1)[rows]
        else:
            for place, row in enumerate(rows // block[0]):
                result[place] *= factors[row, columns // block[1]]
    return result
