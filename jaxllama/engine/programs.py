"""Programs: the functions of `steps.py`, each compiled once, ahead of time, and called.

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
    prefill_packed (params, state, ids [R], places [3 G])      spans of prompts of several slots
    decode   (params, state, steps, allowed [S W]) -> state, StepOutput   tokens for every row
             also forced [2 S N] with speculation
    decode_lean                                                           the same, see above
    release  (state, mask [S])                                 rows stop decoding
    scrub    (state, slot)                                     a row's cache is zeroed
    copy     (state, source, target, count)                    a prefix of a cache row
    save     (state, slot, start) -> Columns                   a block of a cache row; no new state
    restore  (state, Columns, slot, start)                     a block of a cache row
    peek     (params, state, slot, ids and targets [2 R], start, last) -> state, Peek
    score    (params, state, slot, Runs) -> state, log-probabilities [B]
    embed    (params, state, slot, ids [R], start, last) -> state, Pooled

With low-rank adapters there is a second program of each that multiplies by weights, for calls with
a row that has an adapter. It takes the adapters' arrays last, and the slot's adapter and scale:

    prefill_adapted, decode_adapted, peek_adapted, score_adapted
    adapt    (adapters, number, weights) -> adapters           one adapter is replaced
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from functools import cached_property
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxllama.chips import chip_of
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.blueprints import (
    ADAPTED,
    LEAN,
    PACKED,
    SAVE,
    SUFFIX,
    WHOLE,
    Blueprints,
    CompilerOptions,
    leaves_of,
)
from jaxllama.engine.branches import RUN
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.compiling import ProgramCompiler, allow_compilations, forbid_compilations
from jaxllama.engine.draft_model import split_weights
from jaxllama.engine.executables import Executables
from jaxllama.engine.forced import nothing_forced
from jaxllama.engine.parcel import pack
from jaxllama.engine.state import DecodeState, StateLeaves
from jaxllama.engine.steps import Runs, StepOutput
from jaxllama.errors import CompiledLate
from jaxllama.kernels import body_named
from jaxllama.model.adapters import AdapterWeights
from jaxllama.model.cache import Columns
from jaxllama.model.key_heads import with_copies
from jaxllama.model.params import Tree
from jaxllama.model.rows import AdapterBlocks
from jaxllama.request import GenerationRequest
from jaxllama.sharding import place
from jaxllama.startup import Progress

logger = logging.getLogger(__name__)

SECONDS_PER_WAIT = 0.02  # for a program that the thread makes: then callers may act again
LOGGED_SECONDS = 1.0  # a program that took less is not logged

FIRST = ("empty", "admit", "prefill")  # and a decode program


class ProgramOrigin(NamedTuple):
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
        blueprints: Blueprints | None = None,
    ) -> None:
        """Prepare to compile or load the device programs of a model; nothing is compiled yet.

        `bank` has the samplers. `adapters` are the device arrays of low-rank adapters, None for
        none. `executables` are compiled programs on disk, None to keep none. `blueprints` describe
        the programs to compile; None: the programs of a model without pipeline stages.
        """
        model = with_copies(model, engine.model_parallel)
        self.model, self.engine, self.bank, self.mesh = model, engine, bank, mesh
        self.body = body_named(engine.kernels)  # its operations are what the programs call
        self.params = params
        self.executables = executables
        if blueprints is None:
            blueprints = Blueprints(model, engine, bank, params, mesh, adapters)
        self.blueprints = blueprints
        self.steps, self.names = self.blueprints.steps, self.blueprints.names
        self.made: dict[str, ProgramOrigin] = {}
        self.is_sealed = False  # compiling is an error from now on
        self._compiler = ProgramCompiler(self._make)
        self._serves_lean = self.body.prefers_lean
        self._planned: frozenset[str] = frozenset()  # made at the start, or behind it
        self.report: Progress = lambda *_: None  # called before each compilation
        self._goal: Sequence[str] = ()  # the programs that a start waits for
        self._compiling: set[str] = set()  # names of programs that are, or were, compiled
        self._weights = leaves_of(params)
        whole = self.blueprints.whole
        self._every_token = place(every_token(engine.slots, bank.vocab), whole)
        nothing = nothing_forced(engine.slots, engine.draft_tokens)
        self._nothing_forced = None if nothing is None else place(nothing, whole)

    def lean_serves(self, request: GenerationRequest, used: Set[str]) -> bool:
        """Say whether `decode_lean`, the program with common samplers only, can serve a request.

        `used` are the names of the samplers that act in the request.
        """
        if self.body.prefers_lean and (request.top_logprobs is not None or request.contrast):
            return False
        return used <= self.bank.common

    @property
    def traces(self) -> Counter[str]:
        """Count how often each program was traced."""
        return self.blueprints.traces

    @property
    def columns(self) -> Columns:
        """Return the shapes and types of one block of KV cache columns, replicated on every device.

        A column holds the keys and values of one token.
        """
        return self.blueprints.columns

    @property
    def tile(self) -> int:
        """Return how many prompt tokens the model computes at a time."""
        return self.steps.tile

    @property
    def runs(self) -> int:
        """Return the number of short runs of tokens that one call of `score` takes.

        `score` computes the log-probabilities of tokens in such runs.
        """
        return self.steps.score_rows // RUN

    @property
    def spans(self) -> int:
        """Return how many spans of prompts one call of `prefill_packed` takes; 0: it is not used.

        A span is a few consecutive tokens of one prompt.
        """
        return self.steps.spans

    @property
    def span_rows(self) -> int:
        """Return the most tokens of one span in a call of `prefill_packed`."""
        return self.steps.tile // self.steps.spans

    @property
    def chunk(self) -> int:
        """Return how many prompt tokens one prefill call takes at most."""
        return self.steps.chunk

    @property
    def devices(self) -> list[Any]:
        """List the devices on which the programs run."""
        return list(self.mesh.devices.flat)

    @cached_property
    def weight_bytes(self) -> int:
        """Return about how many bytes of weights a decode step reads, without a draft model's."""
        return sum(leaf.nbytes for leaf in leaves_of(split_weights(self.params)[0]))

    def roofline(self, step_seconds: float, rows: int) -> dict[str, float]:
        """Return how many weight bytes and FLOPs per second decode steps achieve.

        A step of `rows` rows takes `step_seconds`. Also returns their shares of the chip's peaks,
        if these are known. Attention is not counted, so all figures are lower bounds.
        """
        if not step_seconds:
            return {"weight_bytes_per_second": 0.0, "flops_per_second": 0.0}
        read = self.weight_bytes / step_seconds
        flops = 2 * self.model.parameters_per_token * rows / step_seconds
        found = {"weight_bytes_per_second": read, "flops_per_second": flops}
        kinds = {device.device_kind for device in self.devices}
        chip = chip_of(kinds.pop()) if len(kinds) == 1 else None
        if chip is not None:
            found["bandwidth_share"] = read / len(self.devices) / chip.bandwidth
            found["flops_share"] = flops / len(self.devices) / chip.flops
        return found

    def prepare(self, progress: Progress | None = None, *, behind: bool = True) -> None:
        """Compile or load the programs that a first request needs.

        With `behind`, the others are then made on a background thread; without it, each is made
        when it is first called.
        Calls `progress` with "programs", and with "compiling NAME" before a program is compiled.
        """
        self.report = progress or self.report
        self._serves_lean = self.body.prefers_lean or not self._is_kept(WHOLE)
        chooser = LEAN if self._serves_lean else WHOLE
        first = self._all_parts((*FIRST, chooser))
        others = self._all_parts(name for name in self.names if name != LEAN) if behind else []
        rest = [part for part in others if part not in first]
        self._planned = frozenset((*first, *rest))
        # The slowest of the first, beside the others.
        self._compiler.start([*self.parts(chooser), *rest])
        try:
            self._try_samplers()
            self._make_all(first)
        except BaseException:
            self._compiler.stop()
            raise

    def warm_up(self, progress: Progress | None = None) -> None:
        """Compile or load all programs; afterwards no program is traced any more.

        Calls `progress` with "programs", and with "compiling NAME" before a program is compiled.
        The program `decode_lean` (common samplers only) is left out unless the kernels prefer it,
        because `decode` then serves all rows.
        """
        self._serves_lean = self.body.prefers_lean
        self.report = progress or self.report
        self._planned = frozenset(self._all_parts(self.names))
        self._try_samplers()
        used = (name for name in self.names if name != LEAN or self._serves_lean)
        self._make_all(self._all_parts(used))

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names of the compiled programs that are run for a call of the program `name`.

        Here this is `name` alone. A subclass for pipeline stages may return several.
        """
        return (name,)

    def _all_parts(self, names: Iterable[str]) -> list[str]:
        """List the compiled programs that are run for calls of the programs `names`, each once."""
        return list(dict.fromkeys(part for name in names for part in self.parts(name)))

    def _described(self, part: str) -> tuple[Blueprints, str]:
        """Return the Blueprints that describe the compiled program `part`, and its name in them."""
        return self.blueprints, part

    def compiled(self, name: str) -> Any:
        """Return the executable of one program: from memory, from disk, or compiled now.

        If the background thread is making it, waits for that.
        """
        made = self._compiler.made.get(name)
        return self._compiler.get(name) if made is None else made

    def is_ready(self, name: str) -> bool:
        """Return False if a call of this program would wait for the background thread, else True.

        That thread compiles or loads programs before they are first called.
        """
        return not any(map(self._compiler.is_pending, self.parts(name)))

    def is_made(self, name: str) -> bool:
        """Say whether a call of this program would neither compile nor load anything."""
        return all(part in self._compiler.made for part in self.parts(name))

    def wait(self, name: str, seconds: float) -> None:
        """Let the background thread make this program next; wait for it, at most `seconds`."""
        for part in filter(self._compiler.is_pending, self.parts(name)):
            self._compiler.hurry(part)
            self._compiler.wait(part, seconds)
            return

    @property
    def pending(self) -> tuple[str, ...]:
        """List the programs still to be made by the background thread, the present one first."""
        return self._compiler.pending

    @property
    def figures(self) -> dict[str, float]:
        """Return metrics: numbers of programs compiled, loaded and pending, and the seconds spent.

        `recompilations` counts the programs that were compiled although they were not planned at
        the start.
        """
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
        """Wait until the background thread has made all programs of its queue."""
        self._compiler.join()

    def seal(self) -> None:
        """Make every compilation in this process raise CompiledLate, until `stop` is called."""
        self.is_sealed = True
        forbid_compilations()

    def stop(self) -> None:
        """End the background thread after the program that it is making, and wait for that.

        Also ends the effect of `seal`.
        """
        self._compiler.stop()
        if self.is_sealed:
            allow_compilations()
            self.is_sealed = False

    def delete(self, state: StateLeaves) -> None:
        """Free the device memory of a state."""
        for leaf in state:
            leaf.delete()

    def delete_weights(self) -> None:
        """Free the device memory of the weights, and the compiled programs."""
        for leaf in self._weights:
            leaf.delete()
        self._compiler.made.clear()

    def tree_of(self, state: StateLeaves) -> DecodeState:
        """Rebuild the `DecodeState` tree from the flat tuple that programs take, to read it."""
        tree: DecodeState = jax.tree.unflatten(jax.tree.structure(self.blueprints.state), state)
        return tree

    # Calls of the programs: take host numbers, return the next state. Each consumes `state`.

    def empty(self) -> StateLeaves:
        """Make a new state with all rows inactive."""
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
        """Write keys and values of the first `count` tokens of `ids` to a slot's KV cache.

        The first token goes to column `start` (its position in the slot). Consumes `state` and
        returns the next one. `adapter` has the arrays of all adapters, then the number and scale of
        the slot's adapter; None: the slot has no adapter.
        """
        run = self.compiled(named("prefill", adapter))
        return run(self._weights, state, slot, ids, start, count, *given(adapter))

    def prefill_packed(self, state: StateLeaves, ids: Any, places: Any) -> StateLeaves:
        """Write keys and values of spans of several prompts to the cache; return the next state.

        `ids` holds the spans one after the other, all padded to one size. `places` [3, spans] has
        the slot, the first column and the number of tokens of each.
        """
        return self.compiled(PACKED)(self._weights, state, ids, places)

    def decode(
        self,
        state: StateLeaves,
        steps: Any,
        allowed: Any = None,
        lean: bool = False,
        adapter: StateLeaves | None = None,
        forced: Any = None,
    ) -> tuple[StateLeaves, StepOutput]:
        """Draw up to `steps` tokens for every active row; return the next state and the tokens.

        `allowed` has a bit mask of the allowed tokens for each row, None if all are allowed.
        `lean`: all rows use common samplers only, so a program with these alone may run instead of
        the one with all samplers. `adapter` has the arrays of all adapters, None: no row has one.
        `forced` (a ForcedTokens as one array, only with speculation) has the next tokens of each
        row if its constraint allows no others; the mask in `allowed` is for the token after them.
        None: no row has any.
        """
        if allowed is None:
            allowed = self._every_token
        name = self._decoder(lean=lean) if adapter is None else ADAPTED
        must = None if name == LEAN else self._nothing_forced if forced is None else forced
        run = self.compiled(name)
        return run(self._weights, state, steps, allowed, *given(adapter), *given(must))

    def _decoder(self, *, lean: bool) -> str:
        """Return the name of the decode program to run for rows without adapters.

        The program LEAN has only the common samplers, WHOLE has all samplers. `lean`: all rows use
        common samplers only.
        """
        if not (lean and self._serves_lean):
            return WHOLE
        return WHOLE if self.is_made(WHOLE) and not self.body.prefers_lean else LEAN

    def admit(self, state: StateLeaves, slot: Any, row: Any) -> StateLeaves:
        """Write the start values `row` to a slot's row, so that the row decodes from then on.

        `row` is a RowStart, or the uint8 array that `pack` made of one. Returns the next state.
        """
        return self.compiled("admit")(state, slot, pack(row))

    def release(self, state: StateLeaves, mask: Any) -> StateLeaves:
        """Stop decoding in the rows where `mask` [slots] is True; return the next state."""
        return self.compiled("release")(state, mask)

    def scrub(self, state: StateLeaves, slot: Any) -> StateLeaves:
        """Fill a slot's KV cache with zeros."""
        return self.compiled("scrub")(state, slot)

    def copy(self, state: StateLeaves, source: Any, target: Any, count: Any) -> StateLeaves:
        """Copy the first `count` KV cache columns of slot `source` to slot `target`.

        Each token has one column. Whole blocks are copied, so `count` is rounded up. Returns the
        next state.
        """
        return self.compiled("copy")(state, source, target, count)

    def save(self, state: StateLeaves, slot: Any, start: Any) -> Columns:
        """Return one block (KEY_BLOCK columns) of a slot's KV cache, from column `start` on.

        A column holds the keys and values of one token. Does not consume `state`.
        """
        columns: Columns = self.compiled(SAVE)(state, slot, start)
        return columns

    def restore(self, state: StateLeaves, columns: Columns, slot: Any, start: Any) -> StateLeaves:
        """Write the block `columns` to a slot's KV cache, from column `start` on.

        `columns` is a block as `save` returns it.
        """
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
        """Run known tokens through the model; return the next state and a Peek.

        The Peek has the log-probability of each target, and the logits after each token. `pairs`
        [2, R]: R token ids, then for each id its target, the next token, whose log-probability is
        requested. Keys and values go to the slot's cache from column `start` on. `last` is the
        index of the last id that counts; the rest is padding. `adapter` has the arrays of all
        adapters, then the number and scale of the slot's adapter; None: the slot has no adapter.
        """
        run = self.compiled(named("peek", adapter))
        return run(self._weights, state, slot, pairs, start, last, *given(adapter))

    def score(
        self, state: StateLeaves, slot: Any, runs: Runs, adapter: StateLeaves | None = None
    ) -> Any:
        """Return the next state, and log-probabilities of target tokens after short runs of tokens.

        `runs` holds the tokens of the runs, their cache columns, and the targets; each target comes
        after one of these tokens. `adapter` has the arrays of all adapters, then the number and
        scale of the slot's adapter; None: the slot has no adapter.
        """
        return self.compiled(named("score", adapter))(
            self._weights, state, slot, runs, *given(adapter)
        )

    def embed(self, state: StateLeaves, slot: Any, ids: Any, start: Any, last: Any) -> Any:
        """Return the next state, and the sum and the last one of the final hidden states of `ids`.

        `last` is the index of the last id that counts; the rest is padding. Keys and values go to
        the slot's cache from column `start` on.
        """
        return self.compiled("embed")(self._weights, state, slot, ids, start, last)

    def adapt(self, blocks: StateLeaves, number: Any, weights: AdapterWeights) -> StateLeaves:
        """Return the arrays of all adapters, with adapter `number` replaced by `weights`.

        `blocks` are the old arrays, which stay valid.
        """
        return self.compiled("adapt")(blocks, number, leaves_of(weights))

    # Compiling.

    def _compiler_options(self) -> CompilerOptions:
        """Return the XLA options that differ from the defaults."""
        return self.blueprints.compiler_options()

    def _try_samplers(self) -> None:
        """Check that JAX can trace the samplers, unless compiled programs are on disk.

        Programs are saved only after the samplers passed this check.
        """
        if not self._is_kept(FIRST[0]):
            self.bank.try_samplers()

    def _make_all(self, names: Sequence[str]) -> None:
        """Make these programs one after the other, reporting progress until the last is made."""
        self._goal = names
        for name in names:
            what = f"compiling {name}" if name in self._compiling else "programs"
            self.report(what, self._reached, len(names))
            self.compiled(name)
        self.report("programs", len(names), len(names))
        self._goal, self.report = (), lambda *_: None

    @property
    def _reached(self) -> int:
        """Count the programs already made among those that `_make_all` has to make."""
        return sum(name in self.made for name in self._goal)

    def _make(self, name: str) -> Any:
        """Load or compile a program, record its origin and seconds, and log it if it took long."""
        started = time.perf_counter()
        found = self._load(name)
        is_compiled = found is None
        if found is None:
            self._refuse_if_sealed(name)
            self._compiling.add(name)
            if name in self._goal or not self._goal:
                self.report(f"compiling {name}", self._reached, max(1, len(self._goal)))
            blueprints, own = self._described(name)
            found = blueprints.lowered(own).compile(self._compiler_options())
        seconds = time.perf_counter() - started
        self.made[name] = ProgramOrigin(is_compiled, seconds)
        level = logging.INFO if seconds >= LOGGED_SECONDS else logging.DEBUG
        origin = "compiled" if is_compiled else "loaded"
        logger.log(level, "%s %s in %.2f s", name, origin, seconds)
        if is_compiled and self.executables is not None:
            self.executables.save(name, found, seconds)
        return found

    def _load(self, name: str) -> Any | None:
        """Load a program from disk; None if it is not there or not usable."""
        if self.executables is None:
            return None
        blueprints, own = self._described(name)
        called, outputs = blueprints.called(own), blueprints.outputs(own)
        trees = (jax.tree.structure((called, {})), jax.tree.structure(outputs))
        return self.executables.load(name, trees, list(blueprints.mesh.devices.flat))

    def _is_kept(self, name: str) -> bool:
        """Say whether a compiled program has a file on disk."""
        return self.executables is not None and all(map(self.executables.has, self.parts(name)))

    def _refuse_if_sealed(self, name: str) -> None:
        if self.is_sealed:
            raise CompiledLate(
                f"program {name} would be compiled after the start; expected that nothing is "
                f"(leave out --strict-compile to allow it)"
            )


def named(name: str, adapter: StateLeaves | None) -> str:
    """Return the name of the variant of program `name` for calls with an adapter.

    Without an adapter (None), returns `name` itself.
    """
    return name if adapter is None else name + SUFFIX


def given(argument: Any | None) -> tuple[Any, ...]:
    """Return an optional argument as a tuple to unpack into a call: (argument,), or () for None."""
    return () if argument is None else (argument,)
