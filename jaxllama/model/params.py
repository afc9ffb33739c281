"""The weights of a model: the path, shape and logical axes of each, and the model around them.

The abstract tree is the only contract between weight files and the model; it is derived from the
model's own modules, so the two cannot differ. Knows no file format and reads no values.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from jaxllama.config import ModelConfig
from jaxllama.errors import ConfigError
from jaxllama.kernels import body_named, plain
from jaxllama.kernels.body import AttentionOps, Body
from jaxllama.model.llama import Llama
from jaxllama.model.module import give_values, parameters_of

Tree = dict[Any, Any]  # nested; leaves are arrays (norms) and weights (kernels/body.py)


@dataclass(frozen=True)
class Leaf:
    """The shape of one weight and the logical axis of each dimension."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]

    @property
    def is_matrix(self) -> bool:
        """Say whether the weight is one matrix, which may be stored in few bits (quantized)."""
        return len(self.shape) == 2  # noqa: PLR2004

    @property
    def is_stack(self) -> bool:
        """Say whether the weight holds the matrices of all experts of a layer."""
        return len(self.shape) == 3  # noqa: PLR2004


def attention_of(body: Body, cap: float | None) -> AttentionOps:
    """Return the attention functions of the set of kernels `body`.

    `cap` limits the attention scores, None for no limit. Raises ConfigError if the kernels cannot
    limit them.
    """
    if cap is None:
        return body.attention
    if body.capped_attention is None:
        raise ConfigError(f"kernels {body.name!r} have no attention with a cap on scores")
    return body.capped_attention(cap)


def model_of(config: ModelConfig, params: Tree, body: str = plain.PLAIN.name) -> Llama:
    """Build the model with `params` as its weights, inside a function that JAX traces.

    `body` names the set of kernels that computes its operations.
    """
    model = Llama(config, attention_of(body_named(body), config.attention_cap))
    give_values(model, params)
    return model


@cache
def abstract_params(config: ModelConfig) -> dict[str, Leaf]:
    """Return the shape and logical axes of every weight of the model, by dotted path."""
    model = Llama(config, attention_of(plain.PLAIN, config.attention_cap))
    return {path: Leaf(each.shape, each.axes) for path, each in parameters_of(model)}


def loading_order(leaves: dict[str, Leaf]) -> dict[str, Leaf]:
    """Reorder weights (by path) so that the embedding and the head are loaded first.

    They are the largest: the host memory that loading them takes is reused for the others.
    """
    return dict(sorted(leaves.items(), key=lambda item: item[0].startswith("blocks.")))


def nest(flat: dict[str, Any]) -> Tree:
    """Turn {"blocks.0.ffn": x} into {"blocks": {0: {"ffn": x}}}: dotted paths into nested dicts."""
    tree: dict[str | int, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(int(key) if key.isdigit() else key, {})
        node[last] = value
    return tree
