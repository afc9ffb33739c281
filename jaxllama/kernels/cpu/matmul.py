"""Matmul by the C++ library, fused with the norm, bias and residual around it in a Llama block.

Called at trace time by the C++ body. Rows are float32. For packed weights, inputs are quantised to
eight bits (one scale per row and 32 inputs; an outlier, far larger than the rest of its row, stays
float32). For bf16 weights, inputs are rounded to bf16; for f16 and f32 weights they are used as
they are. Sums are float32.

With AMX, rows of prompts (`Tiled.of_prompts`) and packed weights are rounded to bfloat16 instead.

`active` selects the rows whose result is used. The others take no time: their values are undefined,
but 0 if the matrix is that of an expert, because results of experts are summed up.

Bit rule: a row's result depends on nothing but that row, whatever the number of rows and threads.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.kernels.body import ActiveRows
from jaxllama.kernels.cpu import library
from jaxllama.kernels.cpu.tiled import BLOCK, KINDS, Tiled
from jaxllama.shapes import Array, Float, Int


def normed_matmul(
    x: Float[Array, "L I"],
    norm: Float[Array, " I"] | None,
    eps: float,
    weight: Tiled,
    active: ActiveRows = None,
) -> Float[Array, "L O"]:
    """Return norm(x) · weight + bias in float32; the bias is part of `weight`.

    `norm` is the weight of the norm, None: x is used as it is; `eps` is the norm's epsilon. Only
    rows in the mask `active` are valid in the result (None: all).
    """
    return multiply(x, norm, eps, weight, None, active)


def normed_swiglu(
    x: Float[Array, "L I"],
    norm: Float[Array, " I"] | None,
    eps: float,
    gate_up: Tiled,
    active: ActiveRows = None,
    add: Float[Array, "L G"] | None = None,
) -> Float[Array, "L F"]:
    """Return silu(norm(x) · gate) * (norm(x) · up); the tiles of `gate_up` hold both matrices.

    `norm` is the weight of the norm, None: x is used as it is; `eps` is the norm's epsilon. `add`
    [L, 2 * F] is added to the products: its first half to that of gate, its second to that of up.
    Only rows in the mask `active` are valid in the result (None: all).
    """
    if not gate_up.paired:
        raise ValueError("normed_swiglu needs gate and up in one matrix; make it with tile_pair")
    return multiply(x, norm, eps, gate_up, add, active)


def matmul_add(
    x: Float[Array, "L I"], weight: Tiled, residual: Float[Array, "L O"], active: ActiveRows = None
) -> Float[Array, "L O"]:
    """Return residual + x · weight + bias; the bias is part of `weight`.

    Only rows in the mask `active` are valid in the result (None: all).
    """
    return multiply(x, None, 0.0, weight, residual, active)


def matmul_expert(
    x: Float[Array, "L I"],
    weights: Tiled,
    expert: tuple[Int[Array, ""], int],
    active: ActiveRows,
) -> Float[Array, "L O"]:
    """Return x · weight for one expert of a mixture of experts.

    `weights` hold the matrices of all experts side by side; if they are pairs of gate and up, the
    result is silu(x · gate) * (x · up). `expert` is (index of the expert, number of experts). Rows
    that are not in the mask `active` become 0 (None: all are active).
    """
    number, count = expert
    outward = weights.shape[1]
    if outward % (count * weights.tile) or weights.bias is not None or weights.order is not None:
        raise ValueError(
            f"{count} experts have {outward} outputs together; expected whole tiles of "
            f"{weights.tile} for each, without bias and with inputs in their order"
        )
    check(x, None, weights, None)
    library.loaded()
    call = jax.ffi.ffi_call(
        "jaxllama_matmul_expert",
        jax.ShapeDtypeStruct((x.shape[0], outward // count), jnp.float32),
    )
    return call(
        x,
        or_empty(active, jnp.bool_),
        or_empty(None),
        *stored(weights),
        number.astype(jnp.int32),
        **attributes(weights),
        swiglu=np.int64(weights.paired),
        experts=np.int64(count),
        of_prompt=np.int64(weights.of_prompts),
    )


def take_rows(weight: Tiled, tokens: Int[Array, " L"]) -> Float[Array, "L I"]:
    """Return the embeddings of `tokens` in float32; `weight` is the embedding matrix.

    Token ids past the end of the vocabulary are clamped.
    """
    if weight.paired or weight.order is not None:
        raise ValueError("rows can be taken of a plain matrix only: not paired, not reordered")
    inward, outward = weight.shape
    library.loaded()
    call = jax.ffi.ffi_call(
        "jaxllama_take_rows", jax.ShapeDtypeStruct((tokens.shape[0], inward), jnp.float32)
    )
    return call(
        tokens.astype(jnp.int32), *stored(weight), **attributes(weight), outward=np.int64(outward)
    )


def multiply(
    x: Float[Array, "L I"],
    norm: Float[Array, " I"] | None,
    eps: float,
    weight: Tiled,
    residual: Float[Array, "L _"] | None,  # twice as wide if the matrix is paired
    active: ActiveRows,
) -> Float[Array, "L O"]:
    """Call the C++ matmul kernel: norm(x) · weight + bias + residual, in float32.

    If `weight` holds a pair of matrices, the result is silu(sum for gate) * (sum for up), and
    `residual` has the summands of both side by side. `norm` is the weight of the norm and `eps` its
    epsilon. `norm` or `residual` None: left out. Only rows in the mask `active` are valid
    in the result (None: all).
    """
    check(x, norm, weight, residual)
    if x.shape[0] == 0:
        return jnp.zeros((0, weight.shape[1]), jnp.float32)
    library.loaded()
    call = jax.ffi.ffi_call(
        "jaxllama_matmul", jax.ShapeDtypeStruct((x.shape[0], weight.shape[1]), jnp.float32)
    )
    return call(
        x,
        or_empty(active, jnp.bool_),
        or_empty(norm),
        or_empty(weight.order, jnp.int32),
        *stored(weight),
        or_empty(weight.bias),
        or_empty(residual),
        **attributes(weight),
        swiglu=np.int64(weight.paired),
        eps=np.float32(eps),
        of_prompt=np.int64(weight.of_prompts),
    )


def check(x: Array, norm: Array | None, weight: Tiled, residual: Array | None) -> None:
    """Raise ValueError unless the arguments of a matmul are float32 and fit the shape of `weight`.

    `x` are the rows, `norm` is the weight of the norm, and `residual` is added to the product; None
    for `norm` or `residual`: there is none.
    """
    inward, outward = weight.shape
    expected = {
        "x": (x, (x.shape[0], inward)),
        "norm": (norm, (inward,)),
        "residual": (residual, (x.shape[0], outward * (2 if weight.paired else 1))),
    }
    for name, (array, shape) in expected.items():
        if array is not None and (array.shape != shape or array.dtype != jnp.float32):
            raise ValueError(
                f"{name} is {array.dtype} {array.shape}; weights of shape {weight.shape} need "
                f"float32 {shape}"
            )


def stored(weight: Tiled) -> tuple[Array, Array, Array]:
    """Return the codes, scales and steps of a matrix as arguments of the C++ kernels.

    Steps are small whole numbers; where a matrix has them, an actual scale is an element of the
    scales array times a step. An empty array stands for an array that the matrix does not have.
    """
    scales = or_empty(weight.scales, jnp.uint16)
    return weight.codes, scales, or_empty(weight.steps, jnp.uint8)


def attributes(weight: Tiled) -> dict[str, np.int64]:
    """Return the static arguments of a C++ kernel that describe how a matrix is stored.

    They are its kind of storage (the index in KINDS), the number of blocks of 32 inputs that share
    a scale, and the code that means 0.
    """
    return {
        "kind": np.int64(KINDS.index(weight.kind)),
        "group": np.int64(weight.group // BLOCK),
        "zero": np.int64(weight.zero),
    }


def or_empty(array: Array | None, dtype: jnp.dtype | type = jnp.float32) -> Array:
    """Return `array`, or an empty one for None: C++ kernels take an empty array as absent."""
    return jnp.zeros(0, dtype) if array is None else array
