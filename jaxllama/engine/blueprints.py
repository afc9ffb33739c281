"""Blueprints: the functions of `steps.py` with the arguments for which each is compiled.

Made by `programs.py`, which compiles them and calls the results. A blueprint needs the shapes of
the weights alone, so programs can be compiled for devices that this machine does not have. Knows no
disk and no calls.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.branches import PAIRS, RUN, TARGET_ROWS
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens
from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.draft_model import draft_cost
from jaxllama.engine.forced import nothing_forced
from jaxllama.engine.parcel import size_of, unpack
from jaxllama.engine.state import DecodeState, RowStart, StateLeaves, state_shardings
from jaxllama.engine.steps import Peek, Pooled, Runs, StepOutput, Steps
from jaxllama.kernels import body_named
from jaxllama.model.adapters import AdapterMatrices, AdapterWeights, adapter_shapes
from jaxllama.model.cache import Columns
from jaxllama.model.params import Tree
from jaxllama.model.rows import AdapterBlocks, SlotAdapter
from jaxllama.model.spread import Partitions

SUFFIX = "_adapted"  # of programs for calls with an adapter
LEAN, WHOLE, ADAPTED = "decode_lean", "decode", "decode_adapted"
PACKED = "prefill_packed"
SAVE, FEED, BLANK = "save", "feed", "blank"
READERS = (SAVE, FEED, BLANK)  # programs that do not consume the state, and return none
# Every program with its purpose, in the order in which requests need them.
PURPOSES = {
    "empty": "makes the state of an engine",
    "admit": "lets a row start to decode",
    "prefill": "computes the cache of a prompt",
    LEAN: "draws tokens with the common samplers, until decode is compiled",
    "copy": "reuses a prefix that another slot has cached",
    PACKED: "computes the caches of several short prompts together",
    "release": "stops rows that a client cancels or a stop string ends",
    "scrub": "clears the cache of a row with NaN",
    WHOLE: "draws tokens with all samplers",
    SAVE: "keeps a prefix whose slot is taken by another prompt",
    "restore": "brings such a prefix back",
    "peek": "reads log-probabilities and logits of given tokens",
    "embed": "computes embeddings",
    "score": "scores short continuations",
}
NAMES = tuple(name for name in PURPOSES if name != PACKED)  # of every engine
ADAPTER_PURPOSES = {
    "adapt": "loads a low-rank adapter",
    "prefill_adapted": "computes the cache of a prompt with an adapter",
    ADAPTED: "draws tokens while a row has an adapter",
    "peek_adapted": "reads log-probabilities and logits with an adapter",
    "score_adapted": "scores short continuations with an adapter",
}
CompilerOptions: TypeAlias = dict[str, Any] | None  # of XLA
FLAT = (dict, DecodeState, SlotAdapter)  # passed to programs as their leaves


class Blueprints:
    """The programs of one model and engine size as XLA compiles them: functions, and their types.

    They are `decode`, `prefill`, `admit` and others.
    """

    kind: ClassVar[type[Steps]] = Steps

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        bank: SamplerBank,
        params: Tree,
        mesh: Mesh,
        adapters: AdapterBlocks | None = None,
    ) -> None:
        """Note the functions and types of the programs; nothing is compiled yet.

        `params` and `adapters` give shapes, types and shardings only; `bank` has the samplers.
        Without `adapters`, the programs for low-rank adapters are left out.
        """
        self.model, self.engine, self.bank, self.mesh = model, engine, bank, mesh
        where = split_of(params, adapters, engine, mesh)
        cost = draft_cost(model, engine, params)
        self.steps = self.kind(model, engine, bank, where, draft_cost=cost)
        self.names = tuple(purposes_of(engine, adapters=adapters is not None))
        self.traces: Counter[str] = Counter()
        with jax.set_mesh(mesh):  # the cache's types depend on the platform
            abstract = jax.eval_shape(self.steps.empty)
        shardings = state_shardings(mesh, abstract)
        self._shardings = leaves_of(shardings)
        self.state: DecodeState = jax.tree.map(with_sharding, abstract, shardings)
        self.params = jax.tree.map(lambda x: with_sharding(x, x.sharding), params)
        self._adapters = jax.tree.map(lambda x: with_sharding(x, x.sharding), adapters)
        self.whole = NamedSharding(mesh, PartitionSpec())

    def called(self, name: str) -> tuple[Any, ...]:
        """Return shape, type and sharding of each argument of the program `name`.

        Arguments are flattened as in a call.
        """
        return tuple(map(self._as_called, self._arguments(name)))

    def outputs(self, name: str) -> Any:
        """Return the sharding of each result of the program `name`.

        The decode state and the arrays of adapters may be split over devices; every other result is
        replicated.
        """
        leaf: Any = self.whole
        lean = output_of(leaf)
        output = lean._replace(drafted=leaf if self.engine.draft_tokens else None)
        extra = {
            LEAN: lean,
            WHOLE: output,
            "peek": Peek(leaf, leaf),
            "score": leaf,
            "embed": Pooled(leaf, leaf),
        }
        if name == "adapt":
            return tuple(each.sharding for each in leaves_of(self._adapters))
        if name == SAVE:
            return jax.tree.map(lambda _: leaf, self.columns)
        plain = name.removesuffix(SUFFIX)
        return (self._shardings, extra[plain]) if plain in extra else self._shardings

    def lowered(self, name: str) -> jax.stages.Lowered:
        """Trace the program `name` with JAX and return it lowered to StableHLO."""
        arguments = self._arguments(name)
        function: Callable[..., Any] = getattr(self.steps, function_of(name))

        def traced(*args: Any) -> Any:
            self.traces[name] += 1
            found = function(*map(as_tree, arguments, args))
            if isinstance(found, FLAT):
                return leaves_of(found)
            if name in READERS:
                return found
            state, output = found
            return leaves_of(state), output

        traced.__name__ = name
        donated = tuple(
            index
            for index, part in enumerate(arguments)
            if isinstance(part, DecodeState | StepOutput) and name not in READERS
        )
        with jax.set_mesh(self.mesh):
            jitted = jax.jit(traced, donate_argnums=donated, out_shardings=self.outputs(name))
            return jitted.lower(*self.called(name))

    def compiler_options(self) -> CompilerOptions:
        """Return the XLA options with which programs are compiled, or None for the defaults.

        For packed weights on a CPU, they choose the scheduler that unpacks one matrix at a time.
        The default scheduler of XLA:CPU unpacks all weights at the start of a step.
        """
        if self.engine.packed and self.mesh.devices.flat[0].platform == "cpu":
            return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        return dict(body_named(self.engine.kernels).compiler_options) or None

    def _arguments(self, name: str) -> tuple[Any, ...]:
        """Return the arguments of the program `name`, with shapes and types in place of arrays.

        They are pytrees, not flattened: the arguments of the Python function that is compiled.
        """
        state, number = self.state, self._small(())
        params = self.params
        ids = self._small((self.steps.chunk,))
        pairs = self._small((2, self.steps.tile))
        mask = self._small((self.engine.slots,), jnp.bool_)
        allowed = self._small(every_token(self.engine.slots, self.bank.vocab).shape, jnp.uint32)
        if name == "adapt":
            return (self._adapters, number, self._adapter_weights())
        if name in (WHOLE, ADAPTED):
            nothing = nothing_forced(self.engine.slots, self.engine.draft_tokens)
            forced = () if nothing is None else (self._small(nothing.shape),)
            adapters = () if name == WHOLE else (self._adapters,)
            return (*self._arguments(LEAN), *adapters, *forced)
        if name == "restore":
            return (state, self.columns, number, number)
        if name.endswith(SUFFIX):
            scale: Any = self._small((), jnp.float32)
            own = SlotAdapter(self._adapters, number, scale)  # type: ignore[arg-type]
            return (*self._arguments(name.removesuffix(SUFFIX)), own)
        return {
            "empty": (),
            "prefill": (params, state, number, ids, number, number),
            PACKED: (params, state, self._small((self.steps.tile,)), self._places),
            LEAN: (params, state, number, allowed),
            "admit": (state, number, self._row()),
            "release": (state, mask),
            "scrub": (state, number),
            "copy": (state, number, number, number),
            SAVE: (state, number, number),
            "peek": (params, state, number, pairs, number, number),
            "score": (params, state, number, self._runs()),
            "embed": (params, state, number, self._small((self.steps.tile,)), number, number),
        }[name]

    def _adapter_weights(self) -> AdapterWeights:
        """Return shapes and types of the matrices of one adapter."""

        def small(shape: tuple[int, ...]) -> Any:
            return self._small(shape, jnp.float32)

        return {
            index: {
                name: AdapterMatrices(small(shape.a), tuple(map(small, shape.b)))
                for name, shape in block.items()
            }
            for index, block in adapter_shapes(self.model, self.engine).items()
        }

    @property
    def columns(self) -> Columns:
        """Shapes and types of one block of KV cache columns, replicated on every device."""
        number = self._small(())
        shapes = jax.eval_shape(self.steps.save, self.state, number, number)
        columns: Columns = jax.tree.map(lambda x: with_sharding(x, self.whole), shapes)
        return columns

    @property
    def _places(self) -> Any:
        """Return shape and type of the places of the spans in one call of `prefill_packed`."""
        return self._small((3, self.steps.spans))

    def _runs(self) -> Runs:
        """Return shapes and types of the runs of tokens that one call of `score` takes.

        `score` is the program that computes the log-probabilities of short continuations of a
        prefix.
        """
        runs = self.steps.score_rows // RUN
        shapes = ((runs * RUN,), (2, runs), (TARGET_ROWS,), (2, PAIRS))
        ids, places, rows, pairs = map(self._small, shapes)
        return Runs(ids, places, rows, pairs)  # type: ignore[arg-type]

    def _row(self) -> RowStart:
        """Return shapes and types of a RowStart, the first state of one row.

        They are those of the decode state's fields, without the slot axis.
        """
        fields = [field.name for field in dataclasses.fields(RowStart)]
        state = {name: getattr(self.state, name) for name in fields}
        return RowStart(**jax.tree.map(lambda x: self._small(x.shape[1:], x.dtype), state))

    def _small(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """Return shape and type of an array that is replicated on every device."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.whole)

    def _as_called(self, argument: Any) -> Any:
        """Flatten the shapes and types of one argument of a program, as calls pass it.

        A pytree, such as the decode state, becomes the tuple of its leaves. A RowStart (the first
        state of one row) becomes one array of bytes. Any other argument is returned as it is.
        """
        if isinstance(argument, RowStart):
            return self._small((size_of(argument),), jnp.uint8)
        if isinstance(argument, FLAT):
            return leaves_of(argument)
        return argument


def as_tree(like: Any, argument: Any) -> Any:
    """Rebuild one argument of a program from the flat form in which calls pass it.

    The flat form of a pytree is the tuple of its leaves; that of a RowStart (the first state of one
    row) is one array of bytes. `like` is the argument to rebuild, with shapes in place of arrays.
    """
    if isinstance(like, RowStart):
        return unpack(argument, like)
    if isinstance(like, FLAT):
        return jax.tree.unflatten(jax.tree.structure(like), argument)
    return argument


def leaves_of(tree: Any) -> StateLeaves:
    """Return the arrays of a pytree as a flat tuple."""
    return tuple(jax.tree.leaves(tree))


def output_of(leaf: Any) -> StepOutput:
    """Return a StepOutput with `leaf`, such as a sharding, in place of every array."""
    return StepOutput(leaf, ChosenTokens(*(leaf,) * len(ChosenTokens._fields)))


def purposes_of(engine: EngineConfig, *, adapters: bool) -> dict[str, str]:
    """Return every program of an engine with its purpose, in the order in which they are needed.

    `adapters`: the engine has room for LoRA adapters.
    """
    found = PURPOSES.items()
    own = {name: purpose for name, purpose in found if engine.pack_prompts or name != PACKED}
    return own | (ADAPTER_PURPOSES if adapters else {})


def function_of(name: str) -> str:
    """Return the name of the method of `Steps` that implements the program `name`."""
    return name if name == ADAPTED else name.removesuffix(SUFFIX)


def split_of(
    params: Tree, adapters: AdapterBlocks | None, engine: EngineConfig, mesh: Mesh
) -> Partitions | None:
    """Return the partition of every weight and adapter array over the devices of `mesh`.

    None for one device, or if the kernels leave the partition to the compiler. `params` are the
    weights; `adapters` are the device arrays of all adapters, None for none.
    """
    if not body_named(engine.kernels).splits_itself or mesh.size == 1:
        return None
    return Partitions(*jax.tree.map(lambda leaf: leaf.sharding.spec, (params, adapters)))


def with_sharding(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    """Return a shape without data: shape and dtype of `x`, and the sharding `where`."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
