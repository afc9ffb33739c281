"""Float8 weights: finds the scales beside a matrix and packs both together.

Called by the Hugging Face reader. A scale belongs to the whole matrix, to each row, or to each
block; makers call it `weight_scale` or `weight_scale_inv`, and both multiply. A Packed matrix
repeats it for every output and every group of inputs. Knows names of scales, no model.
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxllama.errors import BadTensors, UnsupportedModel
from jaxllama.kernels.packed import Bits, Packed
from jaxllama.weights.fields import CheckedFields, shown
from jaxllama.weights.stored import Index, Shape, Stored

FLOAT8 = ("F8_E4M3", "F8_E5M2")  # names in safetensors
SCALES = ("_scale_inv", "_scale")  # after the name of a matrix
# Scales of rounded activations and caches, which are not rounded here.
UNUSED = (".input_scale", ".input_scale_ub", ".output_scale", ".k_scale", ".v_scale", ".kv_scale")
METHODS = ("fp8", "fbgemm_fp8", "modelopt", "compressed-tensors")
FORMATS = ("float-quantized", "naive-quantized")  # of compressed-tensors that may hold float8
USUAL_BLOCK = (128, 128)
EIGHT: Bits = 8
MOST_GROUP = 128  # inputs with a scale of their own; 4 bytes for 128 are 3 % more
LEAST_GROUP = 8  # of 4, the scales would be as large as the weights
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


def packed(
    values: np.ndarray, scale: np.ndarray, index: Index, shape: Shape, block: tuple[int, int]
) -> Stored:
    """Return part `index` of a matrix: `values`, the stored part, with the scales of its groups.

    `scale` has the scales of the whole matrix, whose shape is `shape`; `block` is the number of
    rows and of columns that share a scale. The part becomes float32 if too few inputs share one.
    Raise ValueError if it cuts a group of inputs.
    """
    group = group_of(scale.shape, shape, block)
    rows, columns = (np.arange(each.start, each.stop) for each in index)
    if group < LEAST_GROUP:
        with np.errstate(all="ignore"):  # damaged scales may be NaN; the engine checks for that
            return values.astype(np.float32) * factors(scale, rows, columns, shape, block)
    if index[1].start % group or index[1].stop % group:
        raise ValueError(
            f"inputs {index[1].start} to {index[1].stop} of a float8 matrix; expected multiples of "
            f"{group}, which share a scale"
        )
    scales = factors(scale, rows, columns[::group], shape, block)
    return Packed(values, np.ascontiguousarray(scales), None, EIGHT, group)


def group_of(scale: Shape, shape: Shape, block: tuple[int, int]) -> int:
    """Return how many inputs get a scale of their own when a float8 matrix is packed.

    It is a power of two, of which all kernels read many sizes, and at most 128, so that devices can
    split the inputs of a matrix that has one scale. `scale` and `shape` are the shapes of the
    scales and of the matrix; `block` is the number of rows and of columns in a block.
    """
    width = shape[1]
    if scale not in (*ONE, *per_row(shape)):
        width = math.gcd(width, block[1])
    return min(width & -width, MOST_GROUP)


def factors(
    scale: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    shape: Shape,
    block: tuple[int, int],
) -> np.ndarray:
    """Return the float32 scale of each weight in some rows and columns of a matrix.

    `scale` has the scales of the whole matrix, whose shape is `shape`; `block` is the number of
    rows and of columns that share a scale.
    """
    found = scale.astype(np.float32)
    wanted = len(rows), len(columns)
    if scale.shape in ONE:
        return np.broadcast_to(found.reshape(()), wanted)
    if scale.shape in per_row(shape):
        return np.broadcast_to(found.reshape(-1, 1)[rows], wanted)
    return found[np.ix_(rows // block[0], columns // block[1])]
