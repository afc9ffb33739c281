"""Turn the canonical tree of weights into the tree that the programs use.

Weights are grouped, laid out by the body, and placed on devices, one at a time while a checkpoint
is loaded. The only code that knows both how a model names its weights and that a body may lay out
several of them together.
"""

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.kernels import body_named
from jaxllama.kernels.body import GroupKind, HostMatrix, MatrixGroup, Placement, UnreadMatrix
from jaxllama.model.key_heads import copied_heads, copies_of_heads, with_copies
from jaxllama.model.params import Leaf, Tree, abstract_params, nest
from jaxllama.sharding import place, shard_shape

Given = HostMatrix | UnreadMatrix


class GroupNames(NamedTuple):
    """The layers of one block whose matrices multiply the same rows."""

    kind: GroupKind
    layers: tuple[str, ...]


GROUPS = (
    GroupNames(GroupKind.QKV, ("q", "k", "v")),
    GroupNames(GroupKind.GATE_UP, ("gate", "up")),
)
GROUPS_APART = (GROUPS[0], GroupNames(GroupKind.GATE_UP_APART, ("gate", "up")))


class Preparation:
    """Takes every canonical weight once and builds the tree that the programs use."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        mesh: Mesh,
    ) -> None:
        self._abstract = abstract_params(model)
        self._groups = GROUPS if model.activation == "silu" else GROUPS_APART
        self._head_size = model.head_dim
        self._copies = copies_of_heads(model, engine.model_parallel)
        copied = abstract_params(with_copies(model, engine.model_parallel))
        self._with_copies = {p for p, leaf in self._abstract.items() if copied[p] != leaf}
        self._body = body_named(engine.kernels)
        self._placement = Placement(mesh, engine.dtype, engine.packed)
        self._ready: dict[str, Any] = {}
        self._waiting: dict[str, dict[str, Given]] = {}  # by group, until it is complete

    def add(self, path: str, leaf: Leaf, value: Given) -> None:
        """Take one weight of the checkpoint; keep it until its group is complete.

        A group is weights that are stored together, such as those of queries, keys and values.
        `path` is the weight's dotted path in the model, `leaf` its shape and axes, `value` its
        numbers. A complete group is stored on the devices and leaves host memory.
        """
        if path in self._with_copies:
            value = copied_heads(value, self._head_size, self._copies)
        layer = path.rpartition(".")[0]
        if not (self._abstract[f"{layer}.weight"].is_matrix or leaf.is_stack):
            self._ready[path] = self._vector(leaf.axes, value)
            return
        layers = self.group_of(layer)
        waiting = self._waiting.setdefault(layers[0], {})
        waiting[path] = value
        if len(waiting) == sum(len(self._leaves(layer)) for layer in layers):
            self._lay_out(layers, self._waiting.pop(layers[0]))

    def tree(self) -> Tree:
        """Return all weights as the nested tree that compiled programs take.

        Call it after the last weight was added.
        """
        return nest(self._ready)

    def group_of(self, layer: str) -> tuple[str, ...]:
        """Return the paths of the layers whose matrices are stored together with that of `layer`.

        `layer` is a path such as `blocks.0.attention.q`. It is among the result, and alone there if
        its matrix is stored alone.
        """
        parent, _, name = layer.rpartition(".")
        for group in self._groups if self._body.joins else ():
            if name in group.layers:
                return tuple(f"{parent}.{each}" for each in group.layers)
        return (layer,)

    def _lay_out(self, layers: tuple[str, ...], given: dict[str, Given]) -> None:
        """Store the matrices and biases of one group of layers on the devices.

        `layers` are the paths of the layers, `given` all their weights and biases by path.
        """
        first = self._abstract[f"{layers[0]}.weight"]
        group = MatrixGroup(
            kind=self._kind_of(layers),
            matrices=[given[f"{layer}.weight"] for layer in layers],
            biases=[given.get(f"{layer}.bias") for layer in layers],  # type: ignore[misc]
            axes=(first.axes[-2], first.axes[-1]),
        )
        for layer, placed in zip(layers, self._body.lay_out(group, self._placement), strict=True):
            self._ready[f"{layer}.weight"] = placed.weight
            if f"{layer}.bias" in self._abstract:
                self._ready[f"{layer}.bias"] = placed.bias

    def _kind_of(self, layers: tuple[str, ...]) -> GroupKind:
        names = tuple(layer.rpartition(".")[2] for layer in layers)
        if self._abstract[f"{layers[0]}.weight"].is_stack:
            return GroupKind.EXPERT if len(layers) == 1 else GroupKind.EXPERT_GATE_UP
        if self._abstract[f"{layers[0]}.weight"].axes[0] == "vocab":
            return GroupKind.EMBEDDING
        return next(
            (group.kind for group in self._groups if group.layers == names), GroupKind.SINGLE
        )

    def _leaves(self, layer: str) -> list[str]:
        """Return the paths of the weight and, if there is one, the bias of a layer."""
        paths = (f"{layer}.weight", f"{layer}.bias")
        return [path for path in paths if path in self._abstract]

    def _vector(self, axes: tuple[str | None, ...], value: Any) -> Any:
        """Copy a norm's weight to the devices in float32: it is small and needs the precision.

        `axes` are its logical axes, which decide how it is split.
        """
        where = shard_shape(self._placement.mesh, value.shape, axes)
        return place(np.ascontiguousarray(value, np.float32), where)
