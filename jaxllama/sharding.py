"""The layout of arrays on the device mesh: the one table from logical axes to mesh axes.

Used by the model (`constrain`), by loading and by the engine's state. Two mesh axes: `data` splits
slots; `model` splits heads, feed-forward columns and vocabulary. One device is a 1x1 mesh. Plain
JAX is split by XLA; with the C++ kernels every device runs its own part (`model/spread.py`). The
third axis that users name, `stage`, is none of JAX's: every stage has a mesh of its own.
"""

import functools
import operator
import re
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.errors import ConfigError
from jaxllama.shapes import Array

ORDERLESS = 2  # parts whose sum is the same in any order

RULES: dict[str | None, str | None] = {
    "slots": "data",
    "heads": "model",
    "kv_heads": "model",
    "ffn": "model",
    "vocab": "model",
    "experts": None,
    "rows": None,  # tokens of a call: few, and every device needs all of them
    "width": None,
    None: None,
}


class MeshSizes(NamedTuple):
    """The number of parts along each axis of a mesh."""

    data: int = 1  # of the slots
    model: int = 1  # of every layer
    stage: int = 1  # of the list of layers

    def __str__(self) -> str:
        named = self._asdict().items()
        return ",".join(f"{axis}={size}" for axis, size in named if size > 1 or axis != "stage")


def parse_mesh(text: str | None) -> MeshSizes:
    """Parse a mesh like "data=2,model=4,stage=2"; None means one device."""
    sizes: dict[str, int] = {}
    for part in (text or "").split(",") if text else ():
        match = re.fullmatch(r"\s*(data|model|stage)\s*=\s*([0-9]{1,6})\s*", part)
        if match is None or int(match[2]) < 1:
            raise ConfigError(
                f"mesh is {text!r}; expected for example 'data=2,model=4' or 'stage=2'"
            )
        sizes[match[1]] = int(match[2])
    return MeshSizes(**sizes)


def make_mesh(engine: EngineConfig, model: ModelConfig) -> Mesh:
    """Build the configured mesh over the first devices; raise ConfigError if it does not fit.

    With pipeline stages (groups of layers that have a mesh each), this is the mesh of the first
    stage.
    """
    return make_meshes(engine, model)[0]


def make_meshes(engine: EngineConfig, model: ModelConfig) -> list[Mesh]:
    """Build one mesh for each pipeline stage (a group of layers), each over the next devices.

    A model without stages has one mesh. Raises ConfigError if the meshes do not fit the devices or
    the model.
    """
    data, parts = engine.data_parallel, engine.model_parallel
    sizes = MeshSizes(data, parts, engine.stages)
    devices = jax.devices()
    if engine.devices > len(devices):
        raise ConfigError(
            f"mesh {sizes} needs {engine.devices} devices; this machine has {len(devices)}"
        )
    if jax.process_count() > 1 and engine.stages > 1:
        raise ConfigError(
            f"mesh {sizes} has stages on {jax.process_count()} hosts; expected stages on one host, "
            f"or for example --mesh model={len(devices)}"
        )
    if jax.process_count() > 1 and engine.devices < len(devices):
        raise ConfigError(
            f"mesh {sizes} uses {engine.devices} devices; expected all "
            f"{len(devices)} of the {jax.process_count()} hosts, for example "
            f"--mesh model={len(devices)}"
        )
    if model.kv_heads % parts and (parts % model.kv_heads or model.heads % parts):
        raise ConfigError(
            f"key/value heads ({model.kv_heads}) do not divide over model={parts}; choose a "
            f"divisor of {model.kv_heads}, or a multiple that divides the {model.heads} query heads"
        )
    if model.ffn_width % parts:
        raise ConfigError(
            f"ffn width ({model.ffn_width}) does not divide over model={parts}; choose a divisor "
            f"of {model.ffn_width}"
        )
    size = data * parts
    return [
        jax.make_mesh(
            (data, parts),
            ("data", "model"),
            (AxisType.Auto,) * 2,
            devices=devices[stage * size : (stage + 1) * size],
        )
        for stage in range(engine.stages)
    ]


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Return how an array is divided over the devices of the mesh.

    `axes` has a name such as "heads", or None, for each dimension. RULES maps a name to the mesh
    axis along which the dimension is split; None: it is not split.
    """
    return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in axes)))


def shard_shape(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
    """Return how an array of a shape is divided over the devices of the mesh.

    `axes` has a name such as "heads", or None, for each dimension. RULES maps a name to the mesh
    axis along which the dimension is split; None: it is not split. A dimension that does not divide
    evenly is not split.
    """
    kept = [
        axis if size % mesh.shape.get(RULES[axis] or "", 1) == 0 else None
        for size, axis in zip(shape, axes, strict=True)
    ]
    return sharding(mesh, *kept)


def place(array: np.ndarray, where: NamedSharding) -> Array:
    """Copy a host array to its devices, divided as `where` says; return the device array.

    Every host copies only the parts of its own devices.
    """
    if where.is_fully_addressable:
        return jax.device_put(array, where)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def slots_are_split() -> bool:
    """Say whether the program that is being traced splits its slots over several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape.get("data", 1) > 1 and not mesh.manual_axes


def own_parts(axis: str) -> int:
    """Return the number of devices along a mesh axis inside `shard_map`; outside of it, 1.

    Inside, the traced code sees the part of an array that its device holds. Outside, it sees whole
    arrays, which XLA divides.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return int(mesh.shape[axis]) if axis in mesh.manual_axes else 1


def add_up(x: Array, axis: str) -> Array:
    """Return the sum of `x` over the devices along a mesh axis; outside of `shard_map`, `x`.

    With several hosts, the parts are added in the order of the devices, as on a single host with
    CPU devices, so that both round in the same way.
    """
    parts = own_parts(axis)
    if parts > ORDERLESS and jax.process_count() > 1:
        return functools.reduce(operator.add, lax.all_gather(x, axis))
    return lax.psum(x, axis) if parts > 1 else x


def constrain(x: Array, *axes: str | None) -> Array:
    """Return `x` with an instruction to XLA to divide it over the mesh.

    `axes` has a name such as "heads", or None, for each dimension. RULES maps a name to the mesh
    axis along which the dimension is split; None: it is not split. Without a mesh, or inside
    `shard_map`, `x` is returned unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(*(RULES[axis] for axis in axes)))
