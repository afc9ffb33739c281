"""Attention of the GPU body: what surrounds the kernels of `attend.py`.

Kernels are imported when a program is traced, because importing Pallas takes long.
"""

from functools import partial

import jax.numpy as jnp

from jaxllama.kernels.body import AttentionOps, Projections, PromptSpan, Rotation
from jaxllama.kernels.plain.attention import rotated
from jaxllama.kernels.spread import where_slot_lies
from jaxllama.kernels.storage import Layer, append_prompt, layer_of, sides
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int


@scoped
def attend_step(  # noqa: PLR0913, PLR0917 - the operation's arguments, and the cap
    projections: Projections,
    rotation: Rotation,
    layer: Layer,
    position: Int[Array, " S"],
    active: Bool[Array, " S"],
    window: int | None,
    cap: float | None = None,
) -> tuple[Float[Array, "S W"], Layer]:
    """Compute attention of a decode step; return its result and the cache layer with new columns.

    The key and value of row s are stored in column position[s] of slot s; its query attends to the
    columns up to that one. `projections` are queries, keys and values, before the rotary embedding
    whose tables `rotation` has. Rows that are not active change nothing. `layer` must not be used
    afterwards. `window` limits the columns, `cap` the scores; None: no limit.
    """
    from jaxllama.kernels.gpu.attend import StepShape, attend_rows  # noqa: PLC0415 - slow to import

    q, k, _ = projections
    rows, heads, size = q.shape
    shape = StepShape(heads, k.shape[1], size, layer[0].shape[2], window, cap)
    # Where they come from one matmul, XLA undoes the split that they came from.
    flat = jnp.concatenate([part.reshape(rows, -1) for part in projections], axis=1)
    qkv = flat.reshape(rows, -1, size)
    return attend_rows(qkv, rotation, layer, position, active, shape)


@scoped
def attend_prompt(
    projections: Projections,
    rotation: Rotation,
    layer: Layer,
    span: PromptSpan,
    window: int | None,
    cap: float | None = None,
) -> tuple[Float[Array, "L W"], Layer]:
    """Compute attention of prompt rows; return its result and the cache layer with new columns.

    The rows' keys and values are stored in one slot; each row attends to the columns up to its own.
    `projections` are queries, keys and values, before the rotary embedding whose tables `rotation`
    has; `span` is the slot, the first column and the number of real rows. `layer` must not be used
    afterwards. `window` limits the columns, `cap` the scores; None: no limit.
    """
    from jaxllama.kernels.gpu.attend import attend_queries  # noqa: PLC0415 - slow to import

    q, k, v = rotated(projections, rotation)
    new = zip(sides(layer), (k, v), strict=True)
    layer = layer_of(*(append_prompt(*pair, span.slot, span.start) for pair in new))
    return attend_queries(q, layer, span, window, cap)


def capped_attention(cap: float | None) -> AttentionOps:
    """Return attention functions that limit scores to `cap` by tanh; None: no limit."""
    step, prompt = (partial(each, cap=cap) for each in (attend_step, attend_prompt))
    return AttentionOps(step, where_slot_lies(prompt))


ATTENTION = AttentionOps(attend_step, where_slot_lies(attend_prompt))
