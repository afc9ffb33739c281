"""Programs: the functions of `steps.py`, each compiled once, ahead of time.

Built by `llm.py`, run by `engine.py`. Each takes the state donated and returns the next one. They
are called as compiled objects, so a wrong shape raises instead of recompiling. Arguments and
results are plain tuples of arrays, because JAX would traverse a tree at every call: the engine
keeps a state as the leaves of a `DecodeState`.

    empty    () -> state                                       every row inert
    prefill  (params, state, slot, ids [P], start, count)      a chunk of one slot's prompt
    admit    (state, slot, parcel of a RowStart)               a row starts to decode
    decode   (params, state, steps, allowed [S W]) -> state, StepOutput   tokens for every row
    release  (state, mask [S])                                 rows stop decoding
    scrub    (state, slot)                                     a row's cache is zeroed
    copy     (state, source, target, count)                    a prefix of a cache row
    peek     (params, state, slot, ids and targets [2 R], start, last) -> state, Peek
    weigh    (params, state, slot, Runs) -> state, log-probabilities [B]
    embed    (params, state, slot, ids [R], start, last) -> state, Pooled
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.branches import PAIRS, RUN, TARGET_ROWS
from jaxllama.engine.choosing.bank import ChosenTokens, SamplerBank
from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.executables import Executables
from jaxllama.engine.parcel import pack, size_of, unpack
from jaxllama.engine.state import DecodeState, RowStart, StateLeaves, state_shardings
from jaxllama.engine.steps import Peek, Pooled, Runs, StepOutput, Steps
from jaxllama.kernels import body_named
from jaxllama.model.params import Tree
from jaxllama.startup import Progress

logger = logging.getLogger(__name__)

NAMES = (
    *("empty", "admit", "release", "scrub", "copy"),
    *("prefill", "decode", "peek", "weigh", "embed"),
)


class Programs:
    """The compiled programs of one model and one engine size, and the weights they run on."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        bank: SamplerBank,
        params: Tree,
        mesh: Mesh,
        *,
        executables: Executables | None = None,
    ) -> None:
        self.model, self.engine, self.bank, self.mesh = model, engine, bank, mesh
        self.params = params
        self.executables = executables
        self.steps = Steps(model, engine, bank, split_of(params, engine, mesh))
        self.traces: Counter[str] = Counter()
        self._compiled: dict[str, Any] = {}
        self._weights = leaves_of(params)
        abstract = jax.eval_shape(self.steps.empty)
        shardings = state_shardings(mesh, abstract)
        self._shardings = leaves_of(shardings)
        self._state = jax.tree.map(with_sharding, abstract, shardings)
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

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile or load all programs; afterwards `traces` does not change.

        Calls `progress` with "programs" before each program, and with "compiling NAME" as well if
        the program is not on disk.
        """
        report = progress or (lambda *_: None)
        for done, name in enumerate(NAMES):
            report("programs", done, len(NAMES))
            self.compiled(name, partial(report, f"compiling {name}", done, len(NAMES)))
        report("programs", len(NAMES), len(NAMES))

    def compiled(self, name: str, on_compile: Callable[[], None] = lambda: None) -> Any:
        """Return the executable of one program: from memory, from disk, or compiled now.

        Calls `on_compile` before it compiles.
        """
        if name not in self._compiled:
            started = time.perf_counter()
            self._compiled[name], origin = self._load_or_compile(name, on_compile)
            logger.info("%s %s in %.2f s", name, origin, time.perf_counter() - started)
        return self._compiled[name]

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

    def prefill(self, state: StateLeaves, slot: Any, ids: Any, start: Any, count: Any) -> Any:
        """Compute the cache of `count` tokens of `ids` in a slot, from column `start` on."""
        return self.compiled("prefill")(self._weights, state, slot, ids, start, count)

    def decode(
        self, state: StateLeaves, steps: Any, allowed: Any = None
    ) -> tuple[StateLeaves, StepOutput]:
        """Draw up to `steps` tokens for every active row; all tokens are allowed by default."""
        if allowed is None:
            allowed = self._every_token
        return self.compiled("decode")(self._weights, state, steps, allowed)

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

    def peek(self, state: StateLeaves, slot: Any, pairs: Any, start: Any, last: Any) -> Any:
        """Return the next state, and the log-probability of each target with all logits."""
        return self.compiled("peek")(self._weights, state, slot, pairs, start, last)

    def weigh(self, state: StateLeaves, slot: Any, runs: Runs) -> Any:
        """Return the next state, and the log-probabilities of the targets of short runs."""
        return self.compiled("weigh")(self._weights, state, slot, runs)

    def embed(self, state: StateLeaves, slot: Any, ids: Any, start: Any, last: Any) -> Any:
        """Return the next state, and the pooled final hidden states of ids up to row `last`."""
        return self.compiled("embed")(self._weights, state, slot, ids, start, last)

    # Compiling.

    def _arguments(self, name: str) -> tuple[Any, ...]:
        """Return the abstract arguments of a program, as `Steps` takes them."""
        state, number = self._state, self._small(())
        params = jax.tree.map(lambda x: with_sharding(x, x.sharding), self.params)
        ids = self._small((self.chunk,))
        pairs = self._small((2, self.tile))
        mask = self._small((self.engine.slots,), jnp.bool_)
        allowed = self._small(self._every_token.shape, jnp.uint32)
        return {
            "empty": (),
            "prefill": (params, state, number, ids, number, number),
            "decode": (params, state, number, allowed),
            "admit": (state, number, self._row()),
            "release": (state, mask),
            "scrub": (state, number),
            "copy": (state, number, number, number),
            "peek": (params, state, number, pairs, number, number),
            "weigh": (params, state, number, self._runs()),
            "embed": (params, state, number, self._small((self.tile,)), number, number),
        }[name]

    def _outputs(self, name: str, leaf: Any) -> Any:
        """Return the shardings of a program's results: the state's, and `leaf` for the others."""
        extra = {
            "decode": StepOutput(leaf, ChosenTokens(*(leaf,) * len(ChosenTokens._fields))),
            "peek": Peek(leaf, leaf),
            "weigh": leaf,
            "embed": Pooled(leaf, leaf),
        }
        return (self._shardings, extra[name]) if name in extra else self._shardings

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

    def _load_or_compile(self, name: str, on_compile: Callable[[], None]) -> tuple[Any, str]:
        arguments, outputs = self._arguments(name), self._outputs(name, self._whole)
        called = tuple(map(self._as_called, arguments))
        if self.executables is not None:
            trees = (jax.tree.structure((called, {})), jax.tree.structure(outputs))
            loaded = self.executables.load(name, trees, list(self.mesh.devices.flat))
            if loaded is not None:
                return loaded, "loaded"
        on_compile()
        compiled = self._compile(name, arguments, called, outputs)
        if self.executables is not None:
            self.executables.save(name, compiled)
        return compiled, "compiled"

    def _as_called(self, argument: Any) -> Any:
        """Convert an abstract argument to the form in which a call passes it."""
        if isinstance(argument, RowStart):
            return self._small((size_of(argument),), jnp.uint8)
        if isinstance(argument, dict | DecodeState):
            return leaves_of(argument)
        return argument

    def _compile(
        self, name: str, arguments: tuple[Any, ...], called: tuple[Any, ...], outputs: Any
    ) -> Any:
        function: Callable[..., Any] = getattr(self.steps, name)

        def traced(*args: Any) -> Any:
            self.traces[name] += 1
            found = function(*map(as_tree, arguments, args))
            if isinstance(found, DecodeState):
                return leaves_of(found)
            state, output = found
            return leaves_of(state), output

        traced.__name__ = name
        donated = tuple(i for i, part in enumerate(arguments) if isinstance(part, DecodeState))
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
    if isinstance(like, dict | DecodeState):
        return jax.tree.unflatten(jax.tree.structure(like), argument)
    return argument


def leaves_of(tree: Any) -> StateLeaves:
    """List the arrays of a tree."""
    return tuple(jax.tree.leaves(tree))


def split_of(params: Tree, engine: EngineConfig, mesh: Mesh) -> Tree | None:
    """Return the partition of every weight; None unless the kernels need it (several devices)."""
    if not body_named(engine.kernels).splits_itself or mesh.size == 1:
        return None
    where: Tree = jax.tree.map(lambda leaf: leaf.sharding.spec, params)
    return where


def with_sharding(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    """Return an abstract array with the shape and dtype of `x` and the sharding `where`."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
