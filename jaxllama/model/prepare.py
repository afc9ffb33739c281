"""From the canonical tree to what the programs run on: dtype, layout, fusion, place on the mesh.

Fed one weight at a time while a checkpoint is loaded. The only code that knows both how a model
names its weights and how the chosen operations want them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.config import EngineConfig
from jaxllama.errors import ConfigError
from jaxllama.kernels.tiled import Several, Tiled
from jaxllama.kernels.tiling import takes, tile, tile_pair
from jaxllama.model.params import Leaf, Tree, nest
from jaxllama.model.quantized import Packed
from jaxllama.shapes import Array
from jaxllama.sharding import RULES, shard_shape

Given = np.ndarray | Packed
# Matrices that read the same rows are laid side by side, for one call of a kernel.
TOGETHER = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


class Preparation:
    """Takes every canonical weight once; gives the tree the programs run on."""

    def __init__(self, abstract: dict[str, Leaf], engine: EngineConfig, mesh: Mesh) -> None:
        self.abstract, self.engine, self.mesh = abstract, engine, mesh
        self._ready: dict[str, Any] = {}
        self._partial: dict[
            str, dict[str, Given]
        ] = {}  # by fused module, until all parts are there

    def add(self, path: str, leaf: Leaf, value: Given) -> None:
        """Take one weight; host memory is let go as soon as its module is whole."""
        module, _, kind = path.rpartition(".")
        if self.engine.kernels == "xla":
            self._ready[path] = self._plain(leaf, value)
        elif not self._is_linear(module):
            self._ready[path] = place(leaf, value, self.mesh, "float32")
        else:
            self._add_to_module(module, kind, value)

    def tree(self) -> Tree:
        """The whole tree; every weight must have been added."""
        return nest(self._ready)

    def _plain(self, leaf: Leaf, value: Given) -> Array | Packed:
        if isinstance(value, Packed) and not self.engine.packed:
            value = unpacked(leaf, value)
        return place(leaf, value, self.mesh, self.engine.dtype)

    def _is_linear(self, module: str) -> bool:
        leaf = self.abstract.get(f"{module}.weight")
        return leaf is not None and leaf.is_matrix

    def _add_to_module(self, module: str, kind: str, value: Given) -> None:
        """Collect what is fused; lay it out once nothing is missing."""
        parent, _, name = module.rpartition(".")
        fused = ".".join(filter(None, (parent, TOGETHER.get(name, name))))
        names = PARTS.get(TOGETHER.get(name, ""), (name,))
        parts = self._partial.setdefault(fused, {})
        parts[f"{name}.{kind}"] = value
        modules = [".".join(filter(None, (parent, each))) for each in names]
        wanted = [
            f"{each}.{kind}"
            for each, whole in zip(names, modules, strict=True)
            for kind in ("weight", "bias")
            if f"{whole}.{kind}" in self.abstract
        ]
        if len(parts) == len(wanted):
            self._ready[f"{fused}.weight"] = self._tiled(module, names, self._partial.pop(fused))

    def _tiled(
        self, module: str, names: tuple[str, ...], given: dict[str, Given]
    ) -> Tiled | Several:
        leaf = self.abstract[f"{module}.weight"]
        matrices = [self._kept(leaf, given[f"{name}.weight"]) for name in names]
        biases: list[Any] = [given.get(f"{name}.bias") for name in names]
        runs = [list(run) for _, run in groupby(range(len(matrices)), lambda i: kind(matrices[i]))]
        if len(runs) > 1 and names == PARTS["qkv"] and self.engine.model_parallel == 1:
            tiles = [side_by_side(tile, matrices, biases, run) for run in runs]
            return Several(tuple(place_tiled(each, leaf, self.mesh) for each in tiles))
        if len(runs) > 1:
            matrices = [widened(each) for each in matrices]
        if names == ("embed",) and isinstance(matrices[0], np.ndarray):
            matrices = [matrices[0].T]
        parts = self.engine.model_parallel
        if (
            names == PARTS["qkv"] and parts > 1
        ):  # each device has queries, keys and values of its own
            matrices = [own_outputs(each, i, parts) for i in range(parts) for each in matrices]
            biases = [own_outputs(each, i, parts) for i in range(parts) for each in biases]
        lay_out = tile_pair if names == PARTS["gate_up"] else tile
        made = side_by_side(lay_out, matrices, biases, range(len(matrices)))
        return place_tiled(made, leaf, self.mesh)

    def _kept(self, leaf: Leaf, value: Given) -> Given:
        """Dense weights in the dtype asked for; packed ones as they are, if kernels take them."""
        if isinstance(value, Packed):
            return value if takes(value) else unpacked(leaf, value)
        if self.engine.dtype == "stored":
            return value
        return value.astype(jnp.dtype(self.engine.dtype))


def kind(matrix: Given) -> object:
    """The same for matrices that can share tiles."""
    if not isinstance(matrix, Packed):
        return matrix.dtype
    order = order_of(matrix)
    return matrix.bits, matrix.group, None if order is None else order.tobytes()


def side_by_side(
    lay_out: Callable[..., Tiled], matrices: list[Given], biases: list[Any], which: Sequence[int]
) -> Tiled:
    """Some matrices of one kind, and what biases they have, in one."""
    added = [biases[i] for i in which]
    return lay_out(
        *(matrices[i] for i in which),
        biases=added if any(bias is not None for bias in added) else (),
        order=order_of(matrices[which[0]]),
    )


def widened(matrix: Given) -> np.ndarray:
    """A matrix as float32, in which all kinds are alike."""
    return dense(matrix) if isinstance(matrix, Packed) else matrix.astype(np.float32)


def place(leaf: Leaf, value: Given, mesh: Mesh, dtype: str) -> Array | Packed:
    """One weight on its devices; a Packed one stays packed."""
    if isinstance(value, Packed):
        return place_packed(leaf, value, mesh)
    # Vectors (norms, biases) are few and numerics ask for them in float32.
    wanted = jnp.dtype(dtype) if leaf.is_matrix else jnp.dtype("float32")
    where = shard_shape(mesh, leaf.shape, leaf.axes)
    return jax.device_put(np.ascontiguousarray(value, wanted), where)


def place_packed(leaf: Leaf, value: Packed, mesh: Mesh) -> Packed:
    """Every part is stored by output, so its axes are the logical ones reversed."""
    axes = leaf.axes if leaf.axes[0] == "vocab" else leaf.axes[::-1]

    def put(part: Any) -> Array:
        return jax.device_put(part, shard_shape(mesh, part.shape, axes))

    minima = None if value.minima is None else put(value.minima)
    order = None
    if value.order is not None:
        order = jax.device_put(value.order, shard_shape(mesh, value.order.shape, (None,)))
    return dataclasses.replace(
        value, codes=put(value.codes), scales=put(value.scales), minima=minima, order=order
    )


def order_of(matrix: Given) -> np.ndarray | None:
    """Which input each stored one is, if they are not in their own order."""
    if not isinstance(matrix, Packed) or matrix.order is None:
        return None
    return np.asarray(matrix.order)


def own_outputs(value: Any, index: int, parts: int) -> Any:
    """One of equal parts of a matrix, along its outputs, or of a bias."""
    if value is None:
        return None

    def cut(array: np.ndarray, axis: int) -> np.ndarray:
        return np.split(array, parts, axis)[index]

    if isinstance(value, Packed):
        minima = None if value.minima is None else cut(value.minima, 0)
        return dataclasses.replace(
            value, codes=cut(value.codes, 0), scales=cut(value.scales, 0), minima=minima
        )
    return cut(value, value.ndim - 1)


def place_tiled(tiled: Tiled, leaf: Leaf, mesh: Mesh) -> Tiled:
    """A matrix of the kernels on its devices: tiles are split by output, blocks by input."""
    inward, outward = leaf.axes[::-1] if leaf.axes[0] == "vocab" else leaf.axes
    by_output, by_input = RULES[outward], RULES[inward]
    if outward == "vocab" and tiled.shape[1] % (tiled.tile * mesh.shape["model"]):
        by_output = None  # stays whole
    if by_input is not None and tiled.shape[0] % (tiled.shared * mesh.shape[by_input]):
        raise ConfigError(
            f"a matrix of {tiled.shape[0]} inputs, of which {tiled.shared} share scales, does not "
            f"divide over {by_input}={mesh.shape[by_input]}; choose another mesh or --kernels xla"
        )

    if by_input is not None and tiled.order is not None and mesh.shape[by_input] > 1:
        raise ConfigError(
            f"a matrix whose {tiled.shape[0]} inputs are sorted does not divide over "
            f"{by_input}={mesh.shape[by_input]}; choose another mesh or --kernels xla"
        )

    def put(part: Any) -> Array:
        split = PartitionSpec(by_output, None if part is tiled.bias else by_input)
        whole = part is tiled.order
        return jax.device_put(part, NamedSharding(mesh, PartitionSpec() if whole else split))

    return jax.tree.map(put, tiled)


def unpacked(leaf: Leaf, value: Packed) -> np.ndarray:
    """The dense canonical matrix, float32, exactly what the packed one means."""
    return dense(value).T if leaf.axes[0] == "vocab" else dense(value)


def dense(value: Packed) -> np.ndarray:
    """A packed matrix as [in, out] float32."""
    width, out = value.shape
    groups = width // value.group
    matrix = np.empty((width, out), np.float32)
    codes = np.ascontiguousarray(value.codes.T)
    scales = value.scales.T.astype(np.float32)[:, None, :]
    minima = None if value.minima is None else value.minima.T.astype(np.float32)[:, None, :]
    halves = 2 if value.bits == 4 else 1  # noqa: PLR2004
    target = matrix.reshape(groups, value.group // halves, halves, out)
    for half in range(halves):
        part = codes if halves == 1 else (codes >> 4 if half else codes & 15)
        view = target[:, :, half, :]
        np.multiply(part.reshape(groups, -1, out), scales, out=view)
        if minima is not None:
            view += minima
    if value.order is not None:
        matrix[np.asarray(value.order)] = matrix.copy()
    return matrix
