"""Linear, Embedding and Norm: the layers that hold weights, and Ends, how they join the stream.

Used by every block of `llama.py`. A weight knows how it is stored and multiplied
(`kernels/body.py`); the layers only say which weight, norm and bias belong together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxllama.config import Activation
from jaxllama.kernels.body import ActiveRows, GroupMember, NormWeight, Weight
from jaxllama.kernels.plain.matmul import norm
from jaxllama.model.module import Module, Parameter
from jaxllama.model.rows import ALL_ROWS, MatmulRows
from jaxllama.shapes import Array, Float, Int


class Norm(Module):
    """Root-mean-square norm."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = Parameter(width, axes=("width",))
        self.eps = eps

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        """Scale every vector to unit mean square, then by the weight."""
        return norm(x, *self.parameters)

    @property
    def parameters(self) -> NormWeight:
        """The weight and epsilon of the norm, for a matmul that applies it to its input."""
        return NormWeight(self.weight.value, self.eps)


class Linear(Module):
    """x · weight + bias; the sum is float32 in every storage format."""

    def __init__(self, inward: int, outward: int, axes: tuple[str, str], *, bias: bool) -> None:
        self.weight = Parameter(inward, outward, axes=axes)
        self.bias = Parameter(outward, axes=axes[1:]) if bias else None
        self.outward = outward

    def __call__(
        self,
        x: Float[Array, "L I"],
        *,
        norm: Norm | None = None,
        add: Array | None = None,
        rows: MatmulRows = ALL_ROWS,
    ) -> Float[Array, "L O"]:
        """Return norm(x) · weight + bias + `add` for every row.

        `norm` None: x is used as it is; `add` ([L O]) None: nothing is added. `rows` has the mask
        of the rows to compute, and the LoRA adapter of each row, whose part is added too.
        """
        weight, bias, _ = self.member
        scale = None if norm is None else norm.parameters
        delta = rows.delta(x, scale)
        if delta is not None:
            add = delta if add is None else add + delta
        return weight.matmul(x, bias=bias, norm=scale, add=add, active=rows.active)

    @property
    def member(self) -> GroupMember:
        """The weight, bias and number of outputs, for a matmul that joins several layers."""
        weight: Weight = self.weight.value
        bias: Any = None if self.bias is None else self.bias.value
        return GroupMember(weight, bias, self.outward)


def project(
    layers: Sequence[Linear], x: Float[Array, "L I"], norm: Norm | None, rows: MatmulRows
) -> list[Array]:
    """Apply several layers to norm(x); return one array for each layer.

    `norm` None: x is used as it is. `rows` says which rows are used and which adapters they have.
    """
    group = [layer.member for layer in layers]
    scale = None if norm is None else norm.parameters
    add = rows.delta(x, scale)
    return group[0].weight.project(x, group, norm=scale, add=add, active=rows.active)


def gated(
    layers: tuple[Linear, Linear],
    x: Float[Array, "L I"],
    norm: Norm | None,
    activation: Activation,
    rows: MatmulRows,
) -> Float[Array, "L O"]:
    """Return activation(gate(norm(x))) * up(norm(x)) for the layers (gate, up).

    `norm` None: x is used as it is. `rows` says which rows are used and which adapters they have.
    """
    group = [layer.member for layer in layers]
    scale = None if norm is None else norm.parameters
    weight: Weight = group[0].weight
    add = rows.delta(x, scale)
    return weight.gated(x, group, norm=scale, activation=activation, add=add, active=rows.active)


class Embedding(Module):
    """Token vectors; also the output head of a tied model."""

    def __init__(self, vocab: int, width: int) -> None:
        self.weight = Parameter(vocab, width, axes=("vocab", "width"))
        self.vocab = vocab

    def __call__(self, tokens: Int[Array, " L"]) -> Float[Array, "L D"]:
        """Return the vector of every token in float32."""
        weight: Weight = self.weight.value
        return weight.take(tokens, self.vocab)

    def scores(
        self, x: Float[Array, "L D"], *, norm: Norm, active: ActiveRows = None
    ) -> Float[Array, "L V"]:
        """Return the logits of each row: norm(x) times the vectors of all tokens.

        Only the rows in the mask `active` are valid in the result (None: all).
        """
        weight: Weight = self.weight.value
        return weight.matmul(x, norm=norm.parameters, active=active)


class Ends(NamedTuple):
    """The norms and the scale at both ends of half a block (attention or feed-forward).

    They apply before it reads the residual stream, and before its result is added to the stream.
    """

    before: Norm | None  # of its input
    after: Norm | None  # of its result
    scale: float  # of its result

    def add(
        self, last: Linear, inner: Float[Array, "L I"], x: Float[Array, "L D"], rows: MatmulRows
    ) -> Float[Array, "L D"]:
        """Multiply `inner` by the matrix of `last` and add the result to `x`.

        This ends an attention or a feed-forward: `inner` is what it computed, `last` its output
        layer and `x` the residual stream. The result is normed and scaled first if the model does
        so. `rows` says which rows are used and which adapters they have.
        """
        if self.after is None and self.scale == 1:
            return last(inner, add=x, rows=rows)  # one operation for bodies that fuse them
        return self.add_result(last(inner, rows=rows), x)

    def add_result(
        self, result: Float[Array, "L D"], x: Float[Array, "L D"]
    ) -> Float[Array, "L D"]:
        """Norm and scale the result of attention or feed-forward, then add it to `x`.

        `x` is the residual stream. Norm and scale are left out in models without them.
        """
        normed = result if self.after is None else self.after(result)
        return x + scaled(normed, self.scale)


def scaled(x: Float[Array, "*L D"], scale: float) -> Float[Array, "*L D"]:
    """Multiply by `scale`; for 1, return `x` itself, so that nothing is compiled."""
    return x if scale == 1 else x * scale
