"""Subjects: models by shape alone, and the programs of an engine that would serve them.

The weights of one layer are laid out on this machine's processor as a body lays them out at load;
their shapes stand for those of all layers.
"""

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxllama.config import EngineConfig, ModelConfig, Rope
from jaxllama.engine.blueprints import Blueprints
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.kernels import BODIES, body_named
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import Tree, abstract_params
from jaxllama.model.prepare import Preparation
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.sharding import make_mesh
from jaxllama.weights.float8 import USUAL_BLOCK, group_of
from tests.accelerators.targets import Target

SMOLLM2 = ModelConfig(49152, 576, 30, 9, 3, 64, 1536, 8192, rope=Rope(1e5), tied=True, name="135M")
LLAMA_1B = ModelConfig(
    128256, 2048, 16, 32, 8, 64, 8192, 131072, rope=Rope(5e5), tied=True, name="1B"
)
LLAMA_8B = ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, 131072, rope=Rope(5e5), name="8B")
MODELS = {each.name: each for each in (SMOLLM2, LLAMA_1B, LLAMA_8B)}
GROUP = 32  # weights that share a scale
BITS = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4}  # of the weights in matrices


@dataclass(frozen=True)
class Subject:
    """One model in one form on one mesh of one kind of chip."""

    model: ModelConfig
    form: str  # of matrices, a key of BITS
    target: Target
    mesh: tuple[int, int] = (1, 1)
    slots: int = 16
    context: int = 4096

    def __str__(self) -> str:
        data, parts = self.mesh
        spread = "" if data * parts == 1 else f" {data}x{parts}"
        layers = self.model.layers
        part = "" if layers == MODELS[self.model.name].layers else f" {layers} layers"
        return f"{self.target.name}{spread} {self.model.name}{part} {self.form}"

    @property
    def engine(self) -> EngineConfig:
        """The size of the engine, with the defaults of the body."""
        body = body_named(self.target.body if self.target.body in BODIES else "xla")
        data, parts = self.mesh
        engine = EngineConfig(
            slots=self.slots,
            context=self.context,
            prefill_chunk=body.prefill_chunk,
            pack_prompts=body.packs_prompts(),
            steps_per_sync=body.steps_per_sync,
            candidates=256,
            kernels=body.name,
            dtype="bfloat16",
            packed=self.form != "bf16",
            cache_dtype="bfloat16",
            data_parallel=data,
            model_parallel=parts,
        )
        chunk = body.whole_tiles(engine.prefill_chunk, engine.slots)
        return dataclasses.replace(engine, prefill_chunk=chunk)

    def blueprints(self) -> Blueprints:
        """Return the programs, with all installed samplers."""
        mesh, engine = self.target.mesh(*self.mesh), self.engine
        bank = SamplerBank(
            load_plugins(SAMPLERS, Sampler).loaded,
            vocab=self.model.vocab_size,
            candidates=engine.candidates,
            top_logprobs=engine.max_top_logprobs,
            body=engine.kernels,
            texts=lambda: [""] * self.model.vocab_size,
            trial=False,
        )
        return Blueprints(self.model, engine, bank, self.weights(mesh), mesh)

    def weights(self, mesh: Mesh) -> Tree:
        """Return the abstract weights of all layers, on a mesh."""
        one = laid_out(dataclasses.replace(self.model, layers=1), self.engine, self.form)

        def moved(leaf: Any) -> jax.ShapeDtypeStruct:
            where = NamedSharding(mesh, leaf.sharding.spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        tree = jax.tree.map(moved, one)
        return {**tree, "blocks": dict.fromkeys(range(self.model.layers), tree["blocks"][0])}


@cache
def laid_out(model: ModelConfig, engine: EngineConfig, form: str) -> Tree:
    """Lay out zeros as the weights of a small model, on this machine; return their shapes.

    Embedding and head of a float8 model are bfloat16, as in the files that makers publish.
    """
    mesh, leaves = make_mesh(engine, model), abstract_params(model)
    preparation = Preparation(model, engine, mesh)
    for path, leaf in leaves.items():
        own = "bf16" if form == "fp8" and "vocab" in leaf.axes else form
        preparation.add(path, leaf, zeros(leaf.shape, own, vocab_first=path.startswith("embed.")))
    return jax.tree.map(shape_of, preparation.tree())


def shape_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the shape, type and sharding of an array, which may then be freed."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def zeros(shape: tuple[int, ...], form: str, *, vocab_first: bool) -> np.ndarray | Packed:
    """Return a weight of zeros as a reader returns it; matrices of up to 8 bits are packed."""
    bits = BITS[form]
    if len(shape) != 2:
        return np.zeros(shape, np.float32)
    if bits == 16:
        return np.zeros(shape, ml_dtypes.bfloat16)
    inward, out = shape[::-1] if vocab_first else shape
    if form == "fp8":
        group = group_of((), (out, inward), USUAL_BLOCK)
        float8 = np.zeros((out, inward), ml_dtypes.float8_e4m3fn)
        return Packed(float8, np.zeros((out, inward // group), np.float32), None, 8, group)
    codes = np.zeros((out, inward * bits // 8), np.uint8 if bits == 4 else np.int8)
    scales = np.zeros((out, inward // GROUP), np.float16)
    return Packed(codes, scales, None, bits, GROUP)  # type: ignore[arg-type]


def least_step_bytes(blueprints: Blueprints, depth: int) -> int:
    """Return the bytes that a decode step must read: all weights once, and the live cache.

    Of an embedding that is not the head, it reads a few rows.
    """
    weights = sum(size(leaf) for leaf in jax.tree.leaves(blueprints.params))
    if not blueprints.model.tied:
        weights -= sum(size(leaf) for leaf in jax.tree.leaves(blueprints.params["embed"]))
    return weights + live_bytes(blueprints, depth)


def live_bytes(blueprints: Blueprints, depth: int) -> int:
    """Return the bytes of the cache if every slot holds `depth` tokens."""
    cache = jax.tree.leaves(blueprints.state.cache)
    return sum(size(leaf) // leaf.shape[2] * depth for leaf in cache)


def size(leaf: Any) -> int:
    """Return the bytes of an abstract array."""
    return int(np.prod(leaf.shape)) * leaf.dtype.itemsize
