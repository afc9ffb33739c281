"""Body: one implementation of the operations of a model, as a value.

`plain/`, `cpu/`, `gpu/` and `tpu/` each define one; `kernels.BODIES` lists them. The types of the
operations' arguments and results are here too, so a body is written against this file alone. Knows
no request, no sampler and no name of a weight.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllama.config import Activation, ModelConfig
from jaxllama.errors import ConfigError
from jaxllama.kernels.packed import Packed
from jaxllama.kernels.storage import CacheSize, Layer, cache_arrays
from jaxllama.shapes import Array, Bool, Float, Int, Int32

Projections = tuple[Array, Array, Array]  # queries [L N H], keys and values [L K H], not rotated
Rotation = tuple[Array, Array]  # cosines and sines [L U]
ActiveRows = Bool[Array, " L"] | None  # rows whose result is used; None: all rows


class PromptSpan(NamedTuple):
    """The target of the first `rows` rows of a prompt: a slot, from column `start` on."""

    slot: Int[Array, ""]
    start: Int[Array, ""]
    rows: Int[Array, ""]


# Weights.


class NormWeight(NamedTuple):
    """A root-mean-square norm to apply to the input of a matmul."""

    weight: Array
    eps: float


@runtime_checkable
class Weight(Protocol):
    """A matrix that multiplies rows. It is a pytree; its arrays are the leaves."""

    def matmul(
        self,
        x: Float[Array, "L I"],
        *,
        bias: Any = None,
        norm: NormWeight | None = None,
        add: Array | None = None,
        active: ActiveRows = None,
    ) -> Float[Array, "L O"]:
        """Return norm(x) · weight + bias + add in float32; an argument that is None is left out.

        Only the result's rows in the mask `active` are used (None: all), so kernels may skip the
        others.
        """

    def project(
        self,
        x: Float[Array, "L I"],
        group: "Sequence[GroupMember]",
        *,
        norm: NormWeight | None,
        add: Array | None = None,
        active: ActiveRows,
    ) -> list[Array]:
        """Multiply norm(x) by each matrix of `group`, of which this weight is the first.

        A group is matrices that multiply the same rows, here `x`. Returns one array for each.
        `norm` None: x is used as it is. `add`, if given, is added to the results; it holds the
        summands for all results side by side. Only rows in the mask `active` are used, None: all.
        """

    def gated(
        self,
        x: Float[Array, "L I"],
        group: "Sequence[GroupMember]",
        *,
        norm: NormWeight | None,
        activation: Activation = "silu",
        add: Array | None = None,
        active: ActiveRows,
    ) -> Float[Array, "L O"]:
        """Return activation(norm(x) · gate) * (norm(x) · up).

        `group` holds the gate matrix, which is this weight, and the up matrix. `norm` None: x is
        used as it is. `add`, if given, is twice as wide and is added to both products before the
        activation. Only rows in the mask `active` are used, None: all.
        """

    def take(self, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L I"]:
        """Return the embedding of every token in float32; `vocab` is the size of the vocabulary."""


@runtime_checkable
class ExpertWeights(Protocol):
    """One kind of matrix (gate, up or down) of all experts of a layer; a pytree, like a weight."""

    def gated(
        self,
        expert: Int[Array, ""],
        x: Float[Array, "L I"],
        up: Any,
        activation: Activation,
        active: Bool[Array, " L"],
    ) -> Float[Array, "L O"]:
        """Return activation(x · gate) * (x · up) for the expert with the index `expert`.

        This object holds the gate matrices, `up` the up matrices of all experts; `activation` names
        the function. Only rows in the mask `active` are used.
        """

    def matmul(
        self, expert: Int[Array, ""], x: Float[Array, "L I"], active: Bool[Array, " L"]
    ) -> Float[Array, "L O"]:
        """Return x · weight for the expert with the index `expert`.

        Only rows in the mask `active` are used.
        """


class AdapterRows(NamedTuple):
    """The adapter of every row: its number in the adapter arrays, and the scale of its effect."""

    number: Int32[Array, " L"]  # below 0: none
    scale: Float[Array, " L"]


@runtime_checkable
class AdapterGroup(Protocol):
    """The matrices of all low-rank adapters for one group of weights; a pytree.

    A group is weights that multiply the same rows, such as those of queries, keys and values.
    """

    def delta(
        self, x: Float[Array, "L I"], *, norm: NormWeight | None, rows: AdapterRows
    ) -> Float[Array, "L O"]:
        """Return scale * (norm(x) · a) · b with the LoRA matrices a, b of each row's adapter, or 0.

        The result is 0 in rows without adapter. `norm` None: x is used as it is. `rows` has the
        adapter's number and scale for each row. The outputs of the group's weights, which all
        multiply x, lie side by side.
        """

    def written(self, number: Int32[Array, ""], a: Array, b: Sequence[Array]) -> "AdapterGroup":
        """Return the adapter arrays in which `a` and `b` are the LoRA matrices of adapter `number`.

        `a` is [in, weights * rank], `b` has [rank, out] for each weight of the group, the weights
        that multiply the same rows.
        """


class AdapterShape(NamedTuple):
    """The sizes and places of the adapter arrays of one group of weights."""

    inward: int
    outward: tuple[int, ...]  # of each weight
    axes: "Axes"  # logical axes of the weights: of their inputs, of their outputs
    adapters: int
    rank: int

    @property
    def a(self) -> tuple[int, int]:
        """Return the shape of one adapter's A matrices, which lie side by side for all weights."""
        return self.inward, len(self.outward) * self.rank

    @property
    def b(self) -> tuple[tuple[int, int], ...]:
        """Return the shape of one adapter's B matrix for each weight."""
        return tuple((self.rank, each) for each in self.outward)


class GroupMember(NamedTuple):
    """One matrix of a group; the matrices of a group multiply the same rows."""

    weight: Any  # a Weight, or a mark that the first member contains this one
    bias: Any
    width: int  # outputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InGroup:
    """Stands for a weight or bias that is stored inside the first weight of its group.

    A group is matrices that multiply the same rows.
    """


# How weights are laid out at load.

Axes = tuple[str | None, str | None]  # logical axes of a matrix: of its inputs, of its outputs
# As a reader returns it: [in, out], or [vocab, width]; of experts [experts, in, out].
HostMatrix = np.ndarray | Packed


class UnreadMatrix(NamedTuple):
    """A matrix that is still in its file, so that each device's part can be read by itself."""

    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...] | None], HostMatrix]  # a part, or all of it


def in_memory(matrix: HostMatrix | UnreadMatrix) -> HostMatrix:
    """Return the whole matrix, after reading it from its file if it is not in memory."""
    return matrix.read(None) if isinstance(matrix, UnreadMatrix) else matrix


class GroupKind(Enum):
    """The role of a group of matrices in the model."""

    SINGLE = "single"
    EMBEDDING = "embedding"
    QKV = "qkv"
    GATE_UP = "gate_up"
    EXPERT = "expert"  # one matrix of every expert
    EXPERT_GATE_UP = "expert_gate_up"
    GATE_UP_APART = "gate_up_apart"  # with an activation that matmuls do not apply by themselves


class MatrixGroup(NamedTuple):
    """Matrices that multiply the same rows, with their biases, as they come from a file."""

    kind: GroupKind
    matrices: list[HostMatrix | UnreadMatrix]
    biases: list[np.ndarray | None]
    axes: Axes  # of the first matrix


class Placement(NamedTuple):
    """The devices on which weights are stored, and the dtype and form in which they are."""

    mesh: Mesh
    dtype: str
    packed: bool  # keep 4- and 8-bit matrices packed, where the body leaves a choice


class Placed(NamedTuple):
    """One matrix of a group, as it is stored on its devices.

    A group is matrices that multiply the same rows.
    """

    weight: Any
    bias: Any  # None where the model has none


def placed_together(weight: Weight | ExpertWeights, biases: Sequence[Any]) -> list[Placed]:
    """Return (weight, bias) for each matrix of a group that is stored as one weight.

    `biases` has one entry per matrix, None if it has no bias. Only the first pair holds `weight`.
    In place of every other weight, and of every bias, there is an InGroup, which says that the
    first weight contains it. A bias that is None stays None.
    """
    inside = InGroup()
    return [
        Placed(inside if index else weight, None if bias is None else inside)
        for index, bias in enumerate(biases)
    ]


# Attention.


@runtime_checkable
class AttendStep(Protocol):
    """Attention of one token of every slot; with a body that has a `row_cost`, or of several.

    Several tokens of a slot are consecutive: first come the first tokens of all slots, then the
    next ones of all slots, and so on.
    """

    def __call__(
        self,
        projections: Projections,
        rotation: Rotation,
        layer: Layer,
        position: Int[Array, " L"],
        active: Bool[Array, " L"],
        window: int | None,
    ) -> tuple[Float[Array, "L W"], Layer]:
        """Rotate queries and keys, store row s at column position[s] of its slot, attend up to it.

        `projections` are queries, keys and values, `rotation` has the rotary tables, `layer` is one
        layer of the KV cache. `window` limits how many columns a row attends to, None: all.
        Consumes `layer`. Rows that are not active do not change what is read later.
        """


@runtime_checkable
class AttendPrompt(Protocol):
    """Attention of a run of tokens of one slot."""

    def __call__(
        self,
        projections: Projections,
        rotation: Rotation,
        layer: Layer,
        span: PromptSpan,
        window: int | None,
    ) -> tuple[Float[Array, "L W"], Layer]:
        """Rotate queries and keys, store the rows in one slot, let each row attend up to itself.

        `projections` are queries, keys and values, `rotation` has the rotary tables, `layer` is one
        layer of the KV cache. `span` says which slot, from which column on, and how many rows are
        real; further rows change no column that is read later. `window` limits how many columns a
        row attends to, None: all. Consumes `layer`.
        """


class AttentionOps(NamedTuple):
    """Both forms of attention."""

    step: AttendStep
    prompt: AttendPrompt


# Choosing a token.


class Survey(NamedTuple):
    """The largest logit of every row, and whether the row is sound."""

    token: Int32[Array, " S"]  # of the largest logit; the lowest id among equals
    best: Float[Array, " S"]  # that logit
    sound: Bool[Array, " S"]  # free of NaN and +inf


class HeldTokens(NamedTuple):
    """The logits of the tokens that each row already contains, by place in the row."""

    first: Int32[Array, "S T"]  # first place of the same token in the row; T if there is no token
    logits: Float[Array, "S T"]  # logit of the token; 0 if there is none
    sound: Bool[Array, " S"]  # free of NaN and +inf


class Best(NamedTuple):
    """Candidates of every row: survivors first, best first."""

    ids: Int32[Array, "S C"]
    logits: Float[Array, "S C"]  # -inf: not among the survivors
    p: Float[Array, "S C"]  # share of the survivors' weight
    log_total: Float[Array, " S"]  # log-sum-exp of the survivors


@runtime_checkable
class Choosing(Protocol):
    """The operations that read a whole vocabulary to choose a token.

    best    [S] the largest logit of a row: subtracted first, so no temperature can overflow
    heat    [S] what the differences are divided by: the temperature, or 1
    active  [S] rows whose result is used
    """

    def set_aside(
        self, logits: Float[Array, "S V"], active: Bool[Array, " S"], /
    ) -> tuple[Float[Array, "S V"], Float[Array, "S V"]]:
        """Return the logits, which the caller may change in place, and a copy of active rows."""

    def survey(self, logits: Float[Array, "S V"], active: Bool[Array, " S"], /) -> Survey:
        """Find the largest logit of every row, and whether the row is free of NaN and +inf.

        Only rows in the mask `active` are used.
        """

    def best_candidates(
        self,
        logits: Float[Array, "S V"],
        best: Float[Array, " S"],
        heat: Float[Array, " S"],
        active: Bool[Array, " S"],
        count: int,
        /,
    ) -> tuple[Int32[Array, "S C"], Float[Array, "S C"], Float[Array, " S"]]:
        """Return ids and scaled logits of each row's `count` largest logits, and a total per row.

        A scaled logit is (logit - best) / heat, where `best` is the row's largest logit and `heat`
        its temperature; the best comes first. The total is the log-sum-exp of the scaled logits of
        the whole vocabulary. Only rows in the mask `active` are used.
        """

    def close_ranks(
        self, keep: Bool[Array, "S C"], on: Bool[Array, " S"], best: Best, /
    ) -> tuple[Best, Int32[Array, " S"]]:
        """Drop the candidates that are not in the mask `keep`, in the rows where `on` is true.

        If that would drop all candidates of a row, none is dropped. `best` holds the candidates; in
        the result the kept ones are at the front and their probabilities are recomputed. Also
        returns the id of the last kept candidate of each row.
        """

    def draw(
        self,
        logits: Float[Array, "S V"],
        best: Float[Array, " S"],
        heat: Float[Array, " S"],
        chance: Float[Array, " S"],
        active: Bool[Array, " S"],
        /,
    ) -> tuple[Int32[Array, " S"], Float[Array, " S"]]:
        """Draw one token per row from the whole vocabulary, by a random number `chance` in [0, 1).

        Returns ids, and the log-sum-exp of (logit - best) / heat. `best` is each row's largest
        logit, `heat` its temperature; only rows in the mask `active` are used.
        """

    def logprob(
        self, logits: Float[Array, "S V"], token: Int32[Array, " S"], active: Bool[Array, " S"], /
    ) -> Float[Array, " S"]:
        """Return the log-probability, at temperature 1, of one token per row: `token`.

        Only results of rows in the mask `active` have a meaning.
        """

    def take_held(
        self, logits: Float[Array, "S V"], tokens: Int32[Array, "S T"], count: Int32[Array, " S"], /
    ) -> HeldTokens:
        """Return the logits of the tokens that each row already contains.

        `tokens` are the ids of each row's prompt and answer, padded after the first `count` ids.
        The logits have the same places as the ids.
        """

    def put_held(
        self,
        logits: Float[Array, "S V"],
        tokens: Int32[Array, "S T"],
        first: Int32[Array, "S T"],
        held: Float[Array, "S T"],
        /,
    ) -> Float[Array, "S V"]:
        """Write changed logits of the tokens that a row contains back to their places in `logits`.

        `tokens` are the row's ids, `first` is the index at which each id occurs first, as
        `take_held` returned it; `held` are the logits of `take_held` after samplers changed them.
        """


# The body.


@dataclass(frozen=True)
class Body:
    """One implementation of every operation, with its requirements on the rest of the engine."""

    name: str  # as in EngineConfig.kernels and --kernels
    missing: Callable[[], str]  # the reason why it cannot run on this machine; empty if it can
    refuses: Callable[[ModelConfig, int], str]  # the reason against a model in so many parts
    attention: AttentionOps
    choosing: Choosing
    lay_out: Callable[[MatrixGroup, Placement], list[Placed]]  # one result per matrix
    joins: bool  # whether matrices that read the same rows arrive as one group
    dtypes: tuple[str, ...]  # of dense weights
    default_dtype: Callable[[], str]
    keeps_packed: bool  # packed weights always stay packed
    prompt_tile: Callable[[int], int]  # rows of a prompt per iteration, by the number of slots
    prefill_chunk: int  # default of EngineConfig.prefill_chunk
    steps_per_sync: int  # default of EngineConfig.steps_per_sync
    sync_ms: float  # default of EngineConfig.sync_ms
    splits_itself: bool  # on a mesh every device runs it on its own part, under shard_map
    adapter_group: Callable[[AdapterShape, "Placement"], AdapterGroup]  # without any adapter
    adapter_dtype: str | None  # of the arrays of adapters; None: that of dense weights
    # The time of one more row of a decode step, relative to a step with one row. None: the bits of
    # a row depend on the number of rows, so a step cannot check drafts.
    row_cost: Callable[[], float] | None = None
    # Attention with this cap on scores; None where the body has none.
    capped_attention: Callable[[float], AttentionOps] | None = None
    platform: str | None = None  # the one JAX backend that it runs on; None: all
    # Array types and shapes of one layer of the cache; the first axes are slots, heads and columns.
    cache_arrays: Callable[[CacheSize, str], tuple[jax.ShapeDtypeStruct, ...]] = cache_arrays
    # XLA options of every program, where they differ from the defaults.
    compiler_options: Mapping[str, str | bool | int] = field(default_factory=dict)
    # Whether a step gives the columns and logits of a token the bits that a prompt gives it. Where
    # it does not, a prompt never reuses columns that a step computed.
    steps_match_prompts: Callable[[], bool] = lambda: True
    # Returns a tree of weights for rows of prompts alone, which may have their own arithmetic.
    for_prompts: Callable[[Any], Any] = lambda weights: weights
    # Whether a call runs the decode program with the common samplers alone wherever that is enough,
    # so that other samplers cost nothing; else it is used only until the whole one is compiled.
    prefers_lean: bool = False
    # Rows of one call that scores short continuations; None: those of a prompt tile.
    score_rows: int | None = None
    # Whether rows that need more candidates are drawn again all at once; else one after the other.
    draws_together: bool = False
    # Rows of a span, where a prompt tile is cut into spans of several prompts. None: the bits of a
    # row would depend on the size of its span.
    span_rows: int | None = None
    # Whether a prompt tile with fewer real rows takes less time.
    skips_rows: bool = False
    # Default of EngineConfig.pack_prompts: whether a tile of many rows takes hardly longer than a
    # tile of a few.
    packs_prompts: Callable[[], bool] = lambda: False

    def check_drafts(self, tokens: int, devices: int) -> None:
        """Raise ConfigError if a decode step of these kernels cannot check `tokens` drafted tokens.

        `devices` is the number of devices. 0 tokens are always accepted; more are refused if there
        are several devices, or if the result of a row is not bit-identical for every number of
        rows.
        """
        if tokens and (self.row_cost is None or devices > 1):
            raise ConfigError(
                f"draft_tokens is {tokens}; expected 0 with kernels {self.name!r} on {devices} "
                f"devices, and no draft model: the bits of a row must not depend on the number of "
                f"rows, which only the C++ kernels on one device hold"
            )

    def check_packing(self, *, pack: bool) -> None:
        """Raise ConfigError if several prompts are to share a tile of kernels that cannot."""
        if pack and self.span_rows is None:
            raise ConfigError(
                f"pack_prompts is set with kernels {self.name!r}; expected it unset: with these "
                f"kernels, the bits of a prompt's row would depend on the prompts beside it"
            )

    def whole_tiles(self, tokens: int, slots: int) -> int:
        """Round `tokens` up to a multiple of the prompt tile.

        The tile is the number of prompt tokens that the kernels compute at a time with `slots`
        slots. Equal seeds are promised to give equal answers only for prefill in whole tiles.
        """
        tile = self.prompt_tile(slots)
        return -(-tokens // tile) * tile
