"""Programs: the functions of `steps.py`, each compiled once, ahead of time.

Built by `llm.py`, run by `engine.py`. Each takes the state donated and returns the next one, but
for `save`. They are called as compiled objects, so a wrong shape raises instead of recompiling.
Arguments and results are plain tuples of arrays, because JAX would traverse a tree at every call:
the engine keeps a state as the leaves of a `DecodeState`.

A first request needs few of them. `prepare` makes these, and lets a thread make the others behind
it; `is_ready` says whether a call would have to wait. On a fresh installation rows are served by
`decode_lean`, which has the common samplers alone, until `decode` is compiled.

    empty    () -> state                                       every row inert
    prefill  (params, state, slot, ids [P], start, count)      a chunk of one slot's prompt
    admit    (state, slot, parcel of a RowStart)               a row starts to decode
    decode   (params, state, steps, allowed [S W]) -> state, StepOutput   tokens for every row
    decode_lean                                                           the same, see above
    release  (state, mask [S])                                 rows stop decoding
    scrub    (state, slot)                                     a row's cache is zeroed
    copy     (state, source, target, count)                    a prefix of a cache row
    save     (state, slot, start) -> Columns                   a block of a cache row; no new state
    restore  (state, Columns, slot, start)                     a block of a cache row
    peek     (params, state, slot, ids and targets [2 R], start, last) -> state, Peek
    weigh    (params, state, slot, Runs) -> state, log-probabilities [B]
    embed    (params, state, slot, ids [R], start, last) -> state, Pooled

With low-rank adapters there is a second program of each that multiplies by weights, for calls with
a row that has an adapter. It takes the adapters' arrays last, and the slot's adapter and scale:

    prefill_adapted, decode_adapted, peek_adapted, weigh_adapted
    adapt    (adapters, number, weights) -> adapters           one adapter is replaced
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.branches import PAIRS, RUN, TARGET_ROWS
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens
from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.compiling import ProgramCompiler, allow_compilations, forbid_compilations
from jaxllama.engine.executables import Executables
from jaxllama.engine.parcel import pack, size_of, unpack
from jaxllama.engine.state import DecodeState, RowStart, StateLeaves, state_shardings
from jaxllama.engine.steps import Peek, Pooled, Runs, StepOutput, Steps
from jaxllama.errors import CompiledLate
from jaxllama.kernels import body_named
from jaxllama.model.adapters import AdapterMatrices, AdapterWeights, adapter_shapes
from jaxllama.model.cache import Columns
from jaxllama.model.params import Tree
from jaxllama.model.rows import AdapterBlocks, SlotAdapter
from jaxllama.model.spread import Partitions
from jaxllama.startup import Progress

logger = logging.getLogger(__name__)

SECONDS_PER_WAIT = 0.02  # for a program that the thread makes: then callers may act again
LOGGED_SECONDS = 1.0  # a program that took less is not logged

SUFFIX = "_adapted"  # of programs for calls with an adapter
LEAN, WHOLE, ADAPTED = "decode_lean", "decode", "decode_adapted"
SAVE = "save"  # the one program that does not consume the state, and returns none
# Every program with its purpose, in the order in which requests need them.
PURPOSES = {
    "empty": "makes the state of an engine",
    "admit": "lets a row start to decode",
    "prefill": "computes the cache of a prompt",
    LEAN: "draws tokens with the common samplers, until decode is compiled",
    "copy": "reuses a prefix that another slot has cached",
    "release": "stops rows that a client cancels or a stop string ends",
    "scrub": "clears the cache of a row with NaN",
    WHOLE: "draws tokens with all samplers",
    SAVE: "keeps a prefix whose slot is taken by another prompt",
    "restore": "brings such a prefix back",
    "peek": "reads log-probabilities and logits of given tokens",
    "embed": "computes embeddings",
    "weigh": "scores short continuations",
}
NAMES = tuple(PURPOSES)
ADAPTER_PURPOSES = {
    "adapt": "loads a low-rank adapter",
    "prefill_adapted": "computes the cache of a prompt with an adapter",
    ADAPTED: "draws tokens while a row has an adapter",
    "peek_adapted": "reads log-probabilities and logits with an adapter",
    "weigh_adapted": "scores short continuations with an adapter",
}
FIRST = ("empty", "admit", "prefill")  # and a decode program
FLAT = (dict, DecodeState, SlotAdapter)  # passed to programs as their leaves


class Made(NamedTuple):
    """The origin of a program of this process."""

    is_compiled: bool  # False: loaded from disk
    seconds: float  # to compile or load it


class Programs:
    """The compiled programs of one model and one engine size, and the weights they run on."""

    def __init__(  # noqa: PLR0913 - each argument is a part of a program
        self,
        model: ModelConfig,
        engine: EngineConfig,
        bank: SamplerBank,
        params: Tree,
        mesh: Mesh,
        *,
        executables: Executables | None = None,
        adapters: AdapterBlocks | None = None,
    ) -> None:
        """Prepare to make the programs; `adapters` are the arrays of adapters, if there are any."""
        self.model, self.engine, self.bank, self.mesh = model, engine, bank, mesh
        self.params = params
        self.executables = executables
        self.steps = Steps(model, engine, bank, split_of(params, adapters, engine, mesh))
        self.names = NAMES if adapters is None else (*NAMES, *ADAPTER_PURPOSES)
        self.traces: Counter[str] = Counter()
        self.made: dict[str, Made] = {}
        self.is_sealed = False  # compiling is an error from now on
        self._compiler = ProgramCompiler(self._make)
        self._serves_lean = False
        self._planned: frozenset[str] = frozenset()  # made at the start, or behind it
        self.report: Progress = lambda *_: None  # called before each compilation
        self._goal: Sequence[str] = ()  # the programs that a start waits for
        self._compiling: set[str] = set()  # names of programs that are, or were, compiled
        self._weights = leaves_of(params)
        abstract = jax.eval_shape(self.steps.empty)
        shardings = state_shardings(mesh, abstract)
        self._shardings = leaves_of(shardings)
        self._state = jax.tree.map(with_sharding, abstract, shardings)
        self._params = jax.tree.map(lambda x: with_sharding(x, x.sharding), params)
        self._adapters = jax.tree.map(lambda x: with_sharding(x, x.sharding), adapters)
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._every_token = jax.device_put(every_token(engine.slots, bank.vocab), self._whole)

    @property
    def tile(self) -> int:
        """Return the number of rows of one prompt tile, and of one call of a probe."""
        return self.steps.tile

    @property
    def chunk(self) -> int:
        """Return the most prompt tokens of one prefill call."""
        return self.steps.chunk

    @property
    def weight_bytes(self) -> int:
        """Return about how many bytes of weights a decode step reads."""
        return sum(leaf.nbytes for leaf in self._weights)

    def prepare(self, progress: Progress | None = None, *, behind: bool = True) -> None:
        """Make the programs of a first request; with `behind`, start to make the others.

        Calls `progress` with "programs", and with "compiling NAME" before a program is compiled.
        Without `behind`, another program is made when it is called.
        """
        self.report = progress or self.report
        self._serves_lean = not self._is_kept(WHOLE)
        chooser = LEAN if self._serves_lean else WHOLE
        first = (*FIRST, chooser)
        rest = [name for name in self.names if name not in (*first, LEAN)] if behind else []
        self._planned = frozenset((*first, *rest))
        self._compiler.start([chooser, *rest])  # the slowest of the first, beside the others
        try:
            self._try_samplers()
            self._make_all(first)
        except BaseException:
            self._compiler.stop()
            raise

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile or load all programs; afterwards `traces` does not change.

        Calls `progress` as `prepare` does. `decode_lean` is left out: nothing calls it any more.
        """
        self.report = progress or self.report
        self._planned = frozenset(self.names)
        self._try_samplers()
        self._make_all([name for name in self.names if name != LEAN])

    def compiled(self, name: str) -> Any:
        """Return the executable of one program: from memory, from disk, or compiled now.

        If the thread is making it, waits for it.
        """
        made = self._compiler.made.get(name)
        return self._compiler.get(name) if made is None else made

    def is_ready(self, name: str) -> bool:
        """Say whether a call of this program would not wait for the thread."""
        return not self._compiler.is_pending(name)

    def wait(self, name: str, seconds: float) -> None:
        """Let the thread make this program next; wait for it, at most so many seconds."""
        self._compiler.hurry(name)
        self._compiler.wait(name, seconds)

    @property
    def pending(self) -> tuple[str, ...]:
        """List the programs that the thread still has to make, the present one first."""
        return self._compiler.pending

    @property
    def figures(self) -> dict[str, float]:
        """Count the programs by origin, the seconds they took, and those compiled unplanned."""
        made = list(self.made.items())
        compiled = [each.seconds for _, each in made if each.is_compiled]
        loaded = [each.seconds for _, each in made if not each.is_compiled]
        late = [name for name, each in made if each.is_compiled and name not in self._planned]
        return {
            "programs_compiled": len(compiled),
            "programs_loaded": len(loaded),
            "program_compile_seconds": sum(compiled),
            "program_load_seconds": sum(loaded),
            "programs_pending": len(self.pending),
            "recompilations": len(late),
        }

    def finish(self) -> None:
        """Wait until the thread has made all its programs."""
        self._compiler.join()

    def seal(self) -> None:
        """Let every compilation in this process raise CompiledLate, until `stop`."""
        self.is_sealed = True
        forbid_compilations()

    def stop(self) -> None:
        """Let the thread end after the program that it is making, and wait for that."""
        self._compiler.stop()
        if self.is_sealed:
            allow_compilations()
            self.is_sealed = False

    def delete(self, state: StateLeaves) -> None:
        """Free the device memory of a state."""
        for leaf in state:
            leaf.delete()

    def delete_weights(self) -> None:
        """Free the device memory of the weights."""
        for leaf in self._weights:
            leaf.delete()

    def tree_of(self, state: StateLeaves) -> DecodeState:
        """Rebuild the `DecodeState` of a state's leaves, to read it; programs take the leaves."""
        tree: DecodeState = jax.tree.unflatten(jax.tree.structure(self._state), state)
        return tree

    # Calls of the programs: take host numbers, return the next state. Each consumes `state`.

    def empty(self) -> StateLeaves:
        """Make a new state with every row inert."""
        return self.compiled("empty")()

    # `adapter` has the arrays of all adapters, and for programs of one slot its adapter and scale.

    def prefill(
        self,
        state: StateLeaves,
        slot: Any,
        ids: Any,
        start: Any,
        count: Any,
        adapter: StateLeaves | None = None,
    ) -> Any:
        """Compute the cache of `count` tokens of `ids` in a slot, from column `start` on."""
        run = self.compiled(named("prefill", adapter))
        return run(self._weights, state, slot, ids, start, count, *given(adapter))

    def decode(
        self,
        state: StateLeaves,
        steps: Any,
        allowed: Any = None,
        lean: bool = False,
        adapter: StateLeaves | None = None,
    ) -> tuple[StateLeaves, StepOutput]:
        """Draw up to `steps` tokens for every active row; all tokens are allowed by default.

        `lean`: all rows use common samplers only, so the lean program may run if the whole one is
        not there yet.
        """
        if allowed is None:
            allowed = self._every_token
        made = self._compiler.made
        name = LEAN if lean and self._serves_lean and WHOLE not in made else WHOLE
        run = self.compiled(name if adapter is None else ADAPTED)
        return run(self._weights, state, steps, allowed, *given(adapter))

    def admit(self, state: StateLeaves, slot: Any, row: RowStart) -> StateLeaves:
        """Write one row, so that it starts to decode."""
        return self.compiled("admit")(state, slot, pack(row))

    def release(self, state: StateLeaves, mask: Any) -> StateLeaves:
        """Stop the rows in `mask`: they decode no further."""
        return self.compiled("release")(state, mask)

    def scrub(self, state: StateLeaves, slot: Any) -> StateLeaves:
        """Zero a slot's cache."""
        return self.compiled("scrub")(state, slot)

    def copy(self, state: StateLeaves, source: Any, target: Any, count: Any) -> StateLeaves:
        """Copy the first `count` cache columns, rounded up to whole blocks."""
        return self.compiled("copy")(state, source, target, count)

    def save(self, state: StateLeaves, slot: Any, start: Any) -> Columns:
        """Return a block of cache columns; does not consume `state`."""
        columns: Columns = self.compiled(SAVE)(state, slot, start)
        return columns

    def restore(self, state: StateLeaves, columns: Columns, slot: Any, start: Any) -> StateLeaves:
        """Replace a block of cache columns."""
        return self.compiled("restore")(state, columns, slot, start)

    def peek(
        self,
        state: StateLeaves,
        slot: Any,
        pairs: Any,
        start: Any,
        last: Any,
        adapter: StateLeaves | None = None,
    ) -> Any:
        """Return the next state, and the log-probability of each target with all logits."""
        run = self.compiled(named("peek", adapter))
        return run(self._weights, state, slot, pairs, start, last, *given(adapter))

    def weigh(
        self, state: StateLeaves, slot: Any, runs: Runs, adapter: StateLeaves | None = None
    ) -> Any:
        """Return the next state, and the log-probabilities of the targets of short runs."""
        return self.compiled(named("weigh", adapter))(
            self._weights, state, slot, runs, *given(adapter)
        )

    def embed(self, state: StateLeaves, slot: Any, ids: Any, start: Any, last: Any) -> Any:
        """Return the next state, and the pooled final hidden states of ids up to row `last`."""
        return self.compiled("embed")(self._weights, state, slot, ids, start, last)

    def adapt(self, blocks: StateLeaves, number: Any, weights: AdapterWeights) -> StateLeaves:
        """Return the arrays of all adapters with one of them replaced; keeps the old arrays."""
        return self.compiled("adapt")(blocks, number, leaves_of(weights))

    # Compiling.

    def _arguments(self, name: str) -> tuple[Any, ...]:
        """Return the abstract arguments of a program, as `Steps` takes them."""
        state, number = self._state, self._small(())
        params = self._params
        ids = self._small((self.chunk,))
        pairs = self._small((2, self.tile))
        mask = self._small((self.engine.slots,), jnp.bool_)
        allowed = self._small(self._every_token.shape, jnp.uint32)
        if name == "adapt":
            return (self._adapters, number, self._adapter_weights())
        if name == ADAPTED:
            return (*self._arguments(WHOLE), self._adapters)
        if name == "restore":
            return (state, self.columns, number, number)
        if name.endswith(SUFFIX):
            scale: Any = self._small((), jnp.float32)
            own = SlotAdapter(self._adapters, number, scale)  # type: ignore[arg-type]
            return (*self._arguments(name.removesuffix(SUFFIX)), own)
        return {
            "empty": (),
            "prefill": (params, state, number, ids, number, number),
            LEAN: (params, state, number, allowed),
            WHOLE: (params, state, number, allowed),
            "admit": (state, number, self._row()),
            "release": (state, mask),
            "scrub": (state, number),
            "copy": (state, number, number, number),
            SAVE: (state, number, number),
            "peek": (params, state, number, pairs, number, number),
            "weigh": (params, state, number, self._runs()),
            "embed": (params, state, number, self._small((self.tile,)), number, number),
        }[name]

    def _outputs(self, name: str, leaf: Any) -> Any:
        """Return the shardings of a program's results: the state's, and `leaf` for the others."""
        output = StepOutput(leaf, ChosenTokens(*(leaf,) * len(ChosenTokens._fields)))
        extra = {
            LEAN: output,
            WHOLE: output,
            "peek": Peek(leaf, leaf),
            "weigh": leaf,
            "embed": Pooled(leaf, leaf),
        }
        if name == "adapt":
            return tuple(each.sharding for each in leaves_of(self._adapters))
        if name == SAVE:
            return jax.tree.map(lambda _: leaf, self.columns)
        plain = name.removesuffix(SUFFIX)
        return (self._shardings, extra[plain]) if plain in extra else self._shardings

    def _adapter_weights(self) -> AdapterWeights:
        """Return the abstract matrices of one adapter."""

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
        """An abstract block of columns, which every device holds whole."""
        number = self._small(())
        shapes = jax.eval_shape(self.steps.save, self._state, number, number)
        columns: Columns = jax.tree.map(lambda x: with_sharding(x, self._whole), shapes)
        return columns

    def _runs(self) -> Runs:
        """Return abstract runs, as many as fill a tile."""
        runs = self.tile // RUN
        shapes = ((runs * RUN,), (2, runs), (TARGET_ROWS,), (2, PAIRS))
        ids, places, rows, pairs = map(self._small, shapes)
        return Runs(ids, places, rows, pairs)  # type: ignore[arg-type]

    def _row(self) -> RowStart:
        """Return a RowStart of shapes and types only: the state's fields without the slot axis."""
        fields = [field.name for field in dataclasses.fields(RowStart)]
        state = {name: getattr(self._state, name) for name in fields}
        return RowStart(**jax.tree.map(lambda x: self._small(x.shape[1:], x.dtype), state))

    def _small(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """Return an abstract array that every device holds whole."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._whole)

    def _try_samplers(self) -> None:
        """Try the samplers, unless the first program is on disk: it was kept after their trial."""
        if not self._is_kept(FIRST[0]):
            self.bank.try_samplers()

    def _make_all(self, names: Sequence[str]) -> None:
        """Make these programs and report how many of them are made; later, report nothing."""
        self._goal = names
        for name in names:
            what = f"compiling {name}" if name in self._compiling else "programs"
            self.report(what, self._reached, len(names))
            self.compiled(name)
        self.report("programs", len(names), len(names))
        self._goal, self.report = (), lambda *_: None

    @property
    def _reached(self) -> int:
        """Count the programs made of those that a start waits for."""
        return sum(name in self.made for name in self._goal)

    def _make(self, name: str) -> Any:
        """Load or compile a program, note how, and log it if it took long."""
        started = time.perf_counter()
        arguments, outputs = self._arguments(name), self._outputs(name, self._whole)
        called = tuple(map(self._as_called, arguments))
        found = self._load(name, called, outputs)
        is_compiled = found is None
        if found is None:
            self._refuse_if_sealed(name)
            self._compiling.add(name)
            if name in self._goal or not self._goal:
                self.report(f"compiling {name}", self._reached, max(1, len(self._goal)))
            found = self._compile(name, arguments, called, outputs)
        seconds = time.perf_counter() - started
        self.made[name] = Made(is_compiled, seconds)
        level = logging.INFO if seconds >= LOGGED_SECONDS else logging.DEBUG
        origin = "compiled" if is_compiled else "loaded"
        logger.log(level, "%s %s in %.2f s", name, origin, seconds)
        if is_compiled and self.executables is not None:
            self.executables.save(name, found, seconds)
        return found

    def _load(self, name: str, called: tuple[Any, ...], outputs: Any) -> Any | None:
        """Load a program from disk; None if it is not there."""
        if self.executables is None:
            return None
        trees = (jax.tree.structure((called, {})), jax.tree.structure(outputs))
        return self.executables.load(name, trees, list(self.mesh.devices.flat))

    def _is_kept(self, name: str) -> bool:
        """Say whether a program is on disk."""
        return self.executables is not None and self.executables.has(name)

    def _refuse_if_sealed(self, name: str) -> None:
        if self.is_sealed:
            raise CompiledLate(
                f"program {name} would be compiled after the start; expected that nothing is "
                f"(leave out --strict-compile to allow it)"
            )

    def _as_called(self, argument: Any) -> Any:
        """Convert an abstract argument to the form in which a call passes it."""
        if isinstance(argument, RowStart):
            return self._small((size_of(argument),), jnp.uint8)
        if isinstance(argument, FLAT):
            return leaves_of(argument)
        return argument

    def _compile(
        self, name: str, arguments: tuple[Any, ...], called: tuple[Any, ...], outputs: Any
    ) -> Any:
        function: Callable[..., Any] = getattr(self.steps, function_of(name))

        def traced(*args: Any) -> Any:
            self.traces[name] += 1
            found = function(*map(as_tree, arguments, args))
            if isinstance(found, FLAT):
                return leaves_of(found)
            if name == SAVE:
                return found
            state, output = found
            return leaves_of(state), output

        traced.__name__ = name
        donated = tuple(
            index
            for index, part in enumerate(arguments)
            if isinstance(part, DecodeState) and name != SAVE
        )
        with jax.set_mesh(self.mesh):
            jitted = jax.jit(traced, donate_argnums=donated, out_shardings=outputs)
            return jitted.lower(*called).compile(compiler_options=self._compiler_options())

    def _compiler_options(self) -> dict[str, str | bool] | None:
        """Return the XLA options that differ from the defaults.

        The default scheduler of XLA:CPU unpacks all packed weights at the start of a step. The
        other one unpacks each matrix before its use, so that one is in memory at a time.
        """
        if self.engine.packed and self.mesh.devices.flat[0].platform == "cpu":
            return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        return None


def as_tree(like: Any, argument: Any) -> Any:
    """Convert a passed argument back to the tree that `like` has."""
    if isinstance(like, RowStart):
        return unpack(argument, like)
    if isinstance(like, FLAT):
        return jax.tree.unflatten(jax.tree.structure(like), argument)
    return argument


def leaves_of(tree: Any) -> StateLeaves:
    """List the arrays of a tree."""
    return tuple(jax.tree.leaves(tree))


def function_of(name: str) -> str:
    """Return the name of the function in `Steps` of a program."""
    return name if name == ADAPTED else name.removesuffix(SUFFIX)


def named(name: str, adapter: StateLeaves | None) -> str:
    """Return the program of this name for calls with or without an adapter."""
    return name if adapter is None else name + SUFFIX


def given(adapter: StateLeaves | None) -> tuple[StateLeaves, ...]:
    """Return the last arguments of a call: the adapters, if it has any."""
    return () if adapter is None else (adapter,)


def split_of(
    params: Tree, adapters: AdapterBlocks | None, engine: EngineConfig, mesh: Mesh
) -> Partitions | None:
    """Return the partition of every weight; None unless the kernels need it (several devices)."""
    if not body_named(engine.kernels).splits_itself or mesh.size == 1:
        return None
    return Partitions(*jax.tree.map(lambda leaf: leaf.sharding.spec, (params, adapters)))


def with_sharding(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    """Return an abstract array with the shape and dtype of `x` and the sharding `where`."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
