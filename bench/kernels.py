"""Kernels: each matrix of a model through the C++ kernels alone, in GB/s of weights and GOP/s.

Calls with few rows are compared with the memory's bandwidth, calls with many rows with the
arithmetic rate of the vector units; both limits are measured in the same run.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import click
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from ceiling import ceilings, read_rate
from environment import environment_of_machine
from harness import Board, how_often, repeated, script, seconds
from machine import SHORT_BYTES, stream

from jaxllama.kernels.cpu import library
from jaxllama.kernels.cpu.matmul import matmul_add, normed_matmul, normed_swiglu
from jaxllama.kernels.cpu.tiled import Tiled
from jaxllama.kernels.cpu.tiling import tile, tile_pair
from jaxllama.kernels.packed import Bits, Packed

WIDTH, FFN, QKV, VOCAB = 576, 1536, 960, 49152  # of the default model
EPS = 1e-5
ROWS = (1, 4, 8, 16, 32, 128, 512)
SHORT_ROWS = (1, 16)
FEW = 8  # up to this number of rows, memory is the limit
COLD = 48 << 20  # bytes of weights; no processor cache is as large
SHORT_COLD = 4 << 20
WARM = 4  # smallest number of copies of the weights
DENSE: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
FORMS = ("q4_1", "q4_0", "q4_k", "gptq", "q8_0", *DENSE)
SHORT_FORMS = ("q4_1", "bf16")
UNITS = {"bf16": "pairs", "f16": "floats", "f32": "floats"}  # packed weights: bytes

Call = Callable[[jax.Array, Tiled], jax.Array]
Matrix = Packed | np.ndarray


@dataclasses.dataclass(frozen=True)
class Operation:
    """One kind of matrix multiplication in a block of the model."""

    name: str
    inward: int
    outward: int
    call: Call
    pair: bool = False

    @property
    def multiplications(self) -> int:
        """Multiplications per row."""
        return self.inward * self.outward * (2 if self.pair else 1)

    def weight(self, form: str, noise: np.random.Generator) -> Tiled:
        """Return random weights in a form, laid out for the kernels."""
        matrices = [matrix(form, self, noise) for _ in range(2 if self.pair else 1)]
        made = tile_pair(*matrices) if self.pair else tile(*matrices)
        return jax.tree.map(jax.device_put, made)


def projected(x: jax.Array, weight: Tiled) -> jax.Array:
    """Apply the norm and multiply."""
    return normed_matmul(x, jnp.ones(x.shape[1]), EPS, weight)


def gated(x: jax.Array, weight: Tiled) -> jax.Array:
    """Apply the norm, the gate and up matrices and SwiGLU."""
    return normed_swiglu(x, jnp.ones(x.shape[1]), EPS, weight)


def added(x: jax.Array, weight: Tiled) -> jax.Array:
    """Multiply and add to the residual."""
    return matmul_add(x, weight, jnp.ones((x.shape[0], weight.shape[1])))


OPERATIONS = (
    Operation("qkv", WIDTH, QKV, projected),
    Operation("out", WIDTH, WIDTH, added),
    Operation("gate and up", WIDTH, FFN, gated, pair=True),
    Operation("down", FFN, WIDTH, added),
    Operation("head", WIDTH, VOCAB, projected),
)


@click.command()
@script("kernels")
@repeated
@click.option(
    "--form", "forms", type=click.Choice(FORMS), multiple=True, help="Form of the weights."
)
@click.option("--rows", type=click.IntRange(min=1), multiple=True, help="Rows of a call.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the kernels.")
@click.option(
    "--isa", type=click.Choice(("portable", "avx2", "avx512", "amx")), help="Instruction set."
)
def main(*, board: Board, repetitions: int | None, **given: Any) -> None:
    """Measure every matrix of the default model's shapes, in every form and for every row count."""
    if not library.available():
        raise click.ClickException(library.why_not())
    if given["isa"] and not library.force_isa(given["isa"]):
        raise click.ClickException(f"this processor has no {given['isa']}")
    library.set_threads(given["threads"] or library.threads())
    board.environment = environment_of_machine(library.threads(), kernels="cpu")
    times = how_often(board, repetitions)
    with board.doing("the machine's ceilings"):
        limits = ceilings(library.threads())
        words = stream(SHORT_BYTES) if board.short else stream()
        limits["memory"] = max(read_rate(words, library.threads()) for _ in range(3))
    for unit, rate in limits.items():
        board.add(f"ceiling, {unit}", "GB/s" if unit == "memory" else "GOP/s", [rate])
    for form in given["forms"] or (SHORT_FORMS if board.short else FORMS):
        for operation in OPERATIONS:
            for rows in given["rows"] or (SHORT_ROWS if board.short else ROWS):
                report(board, (form, operation, rows), times, limits)


def report(
    board: Board, case: tuple[str, Operation, int], times: int, limits: dict[str, float]
) -> None:
    """Measure one case and record its time and rates."""
    form, operation, rows = case
    name = f"{library.isa()}, {form}, {operation.name}, {rows} row{'s' * (rows > 1)}"
    with board.doing(name):
        cold = 0 if rows > FEW else SHORT_COLD if board.short else COLD
        taken, nbytes = measured(operation, form, (rows, cold), times)
    gigabytes = [nbytes / each / 1e9 for each in taken]
    operations = [2 * operation.multiplications * rows / each / 1e9 for each in taken]
    board.add(name, "us", [each * 1e6 for each in taken])
    if rows <= FEW:
        record(board, f"{name}, weights", "GB/s", gigabytes, limits.get("memory"))
    if rows >= FEW:
        record(
            board, f"{name}, arithmetic", "GOP/s", operations, limits.get(UNITS.get(form, "bytes"))
        )


def record(board: Board, name: str, unit: str, rates: Sequence[float], limit: float | None) -> None:
    """Record a rate and, if the limit is known, its percentage of the limit."""
    board.add(name, unit, rates)
    if limit:
        board.add(f"{name}, share of the ceiling", "%", [100 * rate / limit for rate in rates])


def measured(
    operation: Operation, form: str, sizes: tuple[int, int], times: int
) -> tuple[list[float], int]:
    """Measure the seconds of one call, and return them with the bytes of its weights.

    `sizes` are the number of rows and the smallest number of bytes of all weights together. A
    program makes many calls, each with its own copy of the weights.
    """
    rows, cold = sizes
    noise = np.random.default_rng(0)
    first = operation.weight(form, noise)
    copies = max(WARM, -(-cold // first.nbytes))
    weights = [jax.tree.map(jnp.copy, first) for _ in range(copies)]
    x = jnp.asarray(noise.standard_normal((rows, operation.inward)), jnp.float32)
    program = jax.jit(lambda x, weights: [operation.call(x, weight)[0, 0] for weight in weights])
    jax.block_until_ready(program(x, weights))
    taken = [
        seconds(lambda: jax.block_until_ready(program(x, weights))) / copies
        for _ in range(times + 1)
    ]
    return taken[1:], first.nbytes


def matrix(form: str, operation: Operation, noise: np.random.Generator) -> Matrix:
    """Return random weights [in, out] in a storage form."""
    inward, outward = operation.inward, operation.outward
    if form in DENSE:
        return noise.standard_normal((inward, outward), np.float32).astype(DENSE[form])
    bits: Bits = 8 if form == "q8_0" else 4
    codes = noise.integers(0, 256, (outward, inward * bits // 8), dtype=np.uint8)
    group = 64 if form == "gptq" else 32
    if form == "q4_k":
        steps = noise.integers(0, 64, (outward, inward // group)).astype(np.float32)
        scales = steps * np.float32(2**-10)
    else:
        scales = (1 + noise.random((outward, inward // group))).astype(np.float16) / np.float16(99)
    by = {"q8_0": None, "q4_0": -8}.get(form, -7)
    minima = None if by is None else scales * scales.dtype.type(by)
    return Packed(codes.view(np.int8) if bits == 8 else codes, scales, minima, bits, group)


if __name__ == "__main__":
    main()
