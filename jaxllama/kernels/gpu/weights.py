"""Weights of the GPU body: matrices that read the same rows, side by side, with their biases.

On a mesh each device multiplies its own part under `shard_map`; sums over split inputs are added up
here.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import ActiveRows, NormWeight
from jaxllama.kernels.packed import Packed, take_rows
from jaxllama.kernels.plain.weights import UnfusedWeight, normed
from jaxllama.kernels.spread import take_split
from jaxllama.shapes import Array, Float, Int
from jaxllama.sharding import add_up


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JoinedWeight(UnfusedWeight):
    """Matrices that multiply the same rows, side by side: those stored alike form one array.

    Dense matrices are [in, out], of an embedding [vocab, width].
    """

    parts: tuple[Any, ...]  # arrays, and Packed
    bias: Any  # float32 [out], or None
    dtype: str = dataclasses.field(metadata={"static": True})  # in which packed parts multiply
    by_output: bool = dataclasses.field(default=False, metadata={"static": True})
    splits_inputs: bool = dataclasses.field(default=False, metadata={"static": True})

    def matmul(
        self,
        x: Float[Array, "L I"],
        *,
        bias: Any = None,
        norm: NormWeight | None = None,
        add: Array | None = None,
        active: ActiveRows = None,
    ) -> Float[Array, "L O"]:
        """Return norm(x) · weight + the bias stored with it + add.

        `norm` or `add` None: left out. `bias` and `active` have no effect.
        """
        del bias, active  # the bias is part of the weight
        x = x if norm is None else normed(x, norm)
        found = [self._multiply(x, part) for part in self.parts]
        y = found[0] if len(found) == 1 else jnp.concatenate(found, axis=1)
        y = add_up(y, "model") if self.splits_inputs else y
        y = y if self.bias is None else y + self.bias
        return y if add is None else add + y

    def _multiply(self, x: Float[Array, "L I"], part: Any) -> Float[Array, "L O"]:
        from jaxllama.kernels.gpu import matmul  # noqa: PLC0415 - slow to import

        if isinstance(part, Packed):
            return matmul.multiply_packed(x, part, jnp.dtype(self.dtype))
        return matmul.multiply_dense(x, part, 1 if self.by_output else 0)

    def take(self, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L I"]:
        """Return the embedding of every token; `vocab` is the vocabulary size over all devices.

        Where the vocabulary is split over devices, each looks up the tokens of its own part, and
        the results are added up, so that every device has all embeddings.
        """
        (part,) = self.parts
        own = part.codes.shape[0] if isinstance(part, Packed) else part.shape[0]
        return take_split(partial(rows_of, part), tokens, own, vocab)


def rows_of(part: Any, tokens: Int[Array, " L"]) -> Float[Array, "L I"]:
    """Return the embeddings of `tokens` from the matrix `part`, dense or packed, in float32."""
    if isinstance(part, Packed):
        return take_rows(part, tokens)
    return part[tokens].astype(jnp.float32)
