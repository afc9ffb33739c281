"""Proof that a sampler is fit to run: every promise of the sampler socket, tried out.

Called by tests, ours and those of plugin authors: `check_sampler(MinP)`. Raises AssertionError that
names the broken rule. Knows no sampler; what it tries comes from the knobs' own declarations.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxllama.engine.bank import Choice, Rows, SamplerBank
from jaxllama.engine.knobs import catalogue, switches_on
from jaxllama.engine.rows import context
from jaxllama.engine.token_sets import informed, learn
from jaxllama.errors import PluginError
from jaxllama.sampling import (
    NO_TOKEN,
    Adjuster,
    Candidates,
    Chosen,
    Filter,
    KnobSpec,
    Sampler,
    Shaper,
)

VOCAB = 64
TOKENS = 16
STOP_IDS = (3, 5)
CERTAIN = 7
LISTED = 2
TEXTS = tuple(map(chr, [*range(16), *range(48, 48 + VOCAB - 16)]))  # some of every kind
QUICKLY = {"xla_backend_optimization_level": 0}  # the code runs for milliseconds
HOST_PRIMITIVES = ("callback", "debug_print", "infeed", "outfeed")

Setting = dict[str, object]


class Case(NamedTuple):
    """One row to try: what it holds and what its knobs are."""

    setting: Setting
    logits: np.ndarray
    row: Rows


def check_sampler(kind: type[Sampler]) -> None:
    """Raise AssertionError unless the sampler keeps every rule of its socket.

    declared   every field is a knob with help, or state; one knob turns the sampler on
    compiled   it traces, and returns the shape and type its socket asks for
    host       it never calls back to the host
    numbers    any setting fits the same program: shapes do not depend on values, one trace
    finite     it makes no NaN and no +inf, and its state stays finite
    nonempty   it leaves something to choose
    jit        it says the same compiled and not compiled
    greedy     a claim of `keeps_greedy` holds
    off        a row that does not ask for it is as if it were not installed
    alone      a row gets the same whatever its neighbours do
    """
    cases = list(cases_of(check_declared(kind)))
    bank = check_compiled(kind)
    name = next(iter(bank.samplers))
    known = learn(name, kind, TEXTS, VOCAB)
    check_host(kind, informed(bank.row({})[name], known), cases[0].row)
    begun = check_numbers(kind, bank, cases)
    eager = [np.asarray(call(begun[i], c.logits, c.row)) for i, c in enumerate(cases)]
    asked = [i for i, case in enumerate(cases) if switches_on(kind, case.setting)]
    check_values(kind, [(cases[i], eager[i]) for i in asked])
    check_state(kind, begun)
    check_jit(kind, cases, begun, eager)
    if kind.keeps_greedy:
        check_greedy(kind, [(cases[i], eager[i]) for i in asked])
    check_in_bank(kind, bank, cases)


def check_declared(kind: type[Sampler]) -> dict[str, KnobSpec]:
    """Rule `declared`: the knobs, each with help."""
    try:
        specs = catalogue({kind.__name__: kind})
    except PluginError as error:
        raise broken(kind, "declared", str(error)) from error
    for name, spec in specs.items():
        if not spec.help:
            raise broken(kind, "declared", f"knob {name!r} has no help text")
    return specs


def check_compiled(kind: type[Sampler]) -> SamplerBank:
    """Rule `compiled`: a bank accepts it."""
    try:
        return bank_of(kind)
    except PluginError as error:
        raise broken(kind, "compiled", str(error)) from error


def check_host(kind: type[Sampler], row: Sampler, about: Rows) -> None:
    """Rule `host`: nothing in the traced program leaves it."""
    logits = jnp.zeros(VOCAB, jnp.float32)
    chosen = (jnp.int32(0), jnp.float32(-1.0), jnp.float32(0.5), jnp.float32(0.5))
    # Fresh functions: JAX 0.10 holds two dataclasses with like fields for one when it looks up
    # what it traced before.
    for traced in (
        jax.make_jaxpr(functools.partial(call))(row, logits, about),
        jax.make_jaxpr(lambda row: row.observe(Chosen(*chosen)))(row),
    ):
        for primitive in primitives(traced.jaxpr):
            if any(word in primitive for word in HOST_PRIMITIVES):
                raise broken(kind, "host", f"it uses {primitive}, which leaves the program")


def check_numbers(kind: type[Sampler], bank: SamplerBank, cases: list[Case]) -> list[Sampler]:
    """Rule `numbers`, first half: every setting is accepted and gives rows of one shape."""
    begun = []
    known = learn(kind.__name__, kind, TEXTS, VOCAB)
    for case in cases:
        try:
            bank.check(case.setting)
            begun.append(informed(next(iter(bank.row(case.setting).values())), known))
        except Exception as error:  # start() is the author's code
            raise broken(kind, "numbers", f"with {case.setting}: {error}") from error
    return begun


def check_values(kind: type[Sampler], made: list[tuple[Case, np.ndarray]]) -> None:
    """Rules `finite` and `nonempty`; the bank sees to both after a filter."""
    if issubclass(kind, Filter):
        return
    for case, moved in made:
        if np.isnan(moved).any() or np.isposinf(moved).any():
            raise broken(kind, "finite", f"NaN or +inf with {case.setting}")
        if np.isneginf(moved).all():
            raise broken(kind, "nonempty", f"every token is banned with {case.setting}")


def check_state(kind: type[Sampler], begun: list[Sampler]) -> None:
    """Rule `finite`, for what is carried along: after likely, unlikely and certain tokens."""
    for row in begun:
        after = row
        for p in (0.5, 1.0, 1e-6):
            share = jnp.float32(p)
            after = after.observe(Chosen(jnp.int32(1), jnp.log(share), share, share))
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            leaves = jax.tree.leaves(getattr(after, field.name))
            if not all(np.isfinite(leaf).all() for leaf in leaves):
                raise broken(kind, "finite", f"observe() makes {field.name} not finite")


def check_jit(
    kind: type[Sampler], cases: list[Case], begun: list[Sampler], eager: list[np.ndarray]
) -> None:
    """Rule `jit`: compiled over a batch, the same numbers as one by one."""
    together = jax.jit(jax.vmap(functools.partial(call)))(
        stacked(begun), stacked([c.logits for c in cases]), stacked([c.row for c in cases])
    )
    for case, one, compiled in zip(cases, eager, np.asarray(together), strict=True):
        if not np.allclose(one, compiled, rtol=1e-5, atol=1e-5, equal_nan=True):
            raise broken(kind, "jit", f"compiled and not compiled differ with {case.setting}")


def check_greedy(kind: type[Sampler], made: list[tuple[Case, np.ndarray]]) -> None:
    """Rule `greedy`: the likeliest token stays the likeliest."""
    for case, answer in made:
        if not issubclass(kind, Filter):
            kept = answer[case.logits.argmax()] == answer.max()
        else:
            kept = answer[0] or not answer.any()
        if not kept:
            raise broken(kind, "greedy", f"the likeliest token loses with {case.setting}")


def check_in_bank(kind: type[Sampler], bank: SamplerBank, cases: list[Case]) -> None:
    """Rules `off`, `alone` and the second half of `numbers`: rows of one compiled batch."""
    logits, rows = stacked([c.logits for c in cases]), stacked([c.row for c in cases])
    traces = 0

    def choose(filled: Any, logits: Any, rows: Rows) -> tuple[Any, Choice]:
        nonlocal traces
        traces += 1
        return bank.choose(filled, logits, rows)

    compiled = jax.jit(choose, compiler_options=QUICKLY)

    def step(filled: Any, rows: Rows) -> tuple[Any, Choice]:
        return jax.device_get(compiled(filled, logits, rows))

    if not same(step(stacked([bank.row({})] * len(cases)), rows)[1], plain_choice()):
        raise broken(kind, "off", "it changes rows that do not ask for it")
    asked = stacked([bank.row(case.setting) for case in cases])
    crowd = step(asked, rows)
    if not crowd[1].finite.all():
        worst = cases[int(np.argmin(crowd[1].finite))].setting
        raise broken(kind, "nonempty", f"nothing is left to choose from with {worst}")
    for place, case in enumerate(cases):
        only = rows._replace(active=np.arange(len(cases)) == place)
        if not same(at(step(asked, only), place), at(crowd, place)):
            raise broken(kind, "alone", f"neighbours change the row with {case.setting}")
    step(crowd[0], rows)
    if traces != 1:
        raise broken(kind, "numbers", f"{traces} traces for the same shapes")


def cases_of(specs: Mapping[str, KnobSpec]) -> Iterator[Case]:
    """Rows of every kind under settings of every kind; the rows are the same for all samplers."""
    rng = np.random.default_rng(0)
    wild = rng.normal(size=VOCAB) * 4
    banned = np.where(np.arange(VOCAB) % 2, wild, -np.inf)
    certain = np.where(np.arange(VOCAB) == CERTAIN, 1e4, wild)
    single = np.where(np.arange(VOCAB) == CERTAIN, 1.0, -np.inf)
    for setting in [{}, *settings_of(specs)]:
        for logits in (wild, np.zeros(VOCAB), certain, banned, single):
            yield Case(setting, logits.astype(np.float32), row_of(rng))


def settings_of(specs: Mapping[str, KnobSpec]) -> Iterator[Setting]:
    """Every knob at its lowest, middle and highest, and mixtures of these."""
    rng = np.random.default_rng(0)
    choices = {name: numbers_of(spec) for name, spec in specs.items()}
    for place in range(3):
        yield {name: value_of(specs[name], numbers[place]) for name, numbers in choices.items()}
    for _ in range(3):
        yield {
            name: value_of(specs[name], numbers[rng.integers(3)])
            for name, numbers in choices.items()
        }


def numbers_of(spec: KnobSpec) -> tuple[float | int | bool, ...]:
    """A low, a middle and a high number that the knob accepts."""
    if spec.kind is bool:
        return (False, True, True)
    if spec.tokens or spec.phrases:
        return (0, CERTAIN, VOCAB - 1)
    low = spec.off - 10 if spec.low is None else spec.low
    high = max(spec.off, low) + 10 if spec.high is None else spec.high
    if spec.kind is int:
        return (int(low), int((low + high) // 2), int(high))
    return (float(low), float((low + high) / 2), float(high))


def value_of(spec: KnobSpec, number: float | int | bool) -> object:
    """One number as the knob wants it: plain, as a list or by token."""
    if spec.by_token:
        return {0: number, "7": number, VOCAB - 1: spec.off}
    if spec.phrases:
        return [[number], [CERTAIN, number]]
    return number if spec.width is None else [number] * min(spec.width, 3)


def row_of(rng: np.random.Generator) -> Rows:
    """A row somewhere in its answer: from the first token to a full context."""
    length = rng.choice([1, TOKENS // 2, TOKENS])
    leaves: dict[str, Any] = {
        "tokens": rng.integers(0, VOCAB, TOKENS, np.int32),
        "length": np.int32(length),
        "prompt": rng.integers(1, length, dtype=np.int32, endpoint=True),
        "stop_ids": np.array([*STOP_IDS, NO_TOKEN], np.int32),
        "temperature": rng.choice(np.array([0.0, 0.7, 1.0], np.float32)),
        "temperature_last": rng.choice([False, True]),
        "seed": rng.integers(0, 2**32, 2, np.uint32),
        "active": np.bool_(True),
        "top_logprobs": rng.integers(-1, LISTED, dtype=np.int32, endpoint=True),
    }
    return Rows(**leaves)


def call(sampler: Sampler, logits: Any, row: Rows) -> Any:
    """What the sampler says to one row; a filter is shown the whole vocabulary, sorted."""
    sampler, logits, row = jax.tree.map(jnp.asarray, (sampler, logits, row))
    about = context(row, "checked")
    if isinstance(sampler, Adjuster | Shaper):
        return sampler(logits, about)
    assert isinstance(sampler, Filter)
    best, ids = jax.lax.top_k(logits, VOCAB)
    best = best - best[0]
    total = jax.nn.logsumexp(best)
    p = jnp.exp(best - total)
    entropy, size = jnp.sum(jax.scipy.special.entr(p)), jnp.sum(best > -jnp.inf)
    return sampler(Candidates(ids, best, p, total, entropy, size), about)


def bank_of(kind: type[Sampler] | None) -> SamplerBank:
    """A bank with this sampler alone, or with none."""
    samplers = {} if kind is None else {kind.__name__: kind}
    return SamplerBank(samplers, vocab=VOCAB, candidates=VOCAB, top_logprobs=LISTED, texts=TEXTS)


@functools.cache
def plain_choice() -> Choice:
    """What is chosen for the rows of every check when no sampler is installed."""
    cases = list(cases_of({}))
    logits, rows = stacked([c.logits for c in cases]), stacked([c.row for c in cases])
    return jax.device_get(
        jax.jit(bank_of(None).choose, compiler_options=QUICKLY)({}, logits, rows)[1]
    )


def primitives(jaxpr: Jaxpr) -> Iterator[str]:
    """The names of everything a traced program does, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(value, ClosedJaxpr):
                yield from primitives(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from primitives(value)


def stacked(trees: list[Any]) -> Any:
    """Rows side by side: a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def at(tree: Any, place: int) -> Any:
    """One row of everything."""
    return jax.tree.map(lambda leaf: leaf[place], tree)


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal bit by bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def broken(kind: type[Sampler], rule: str, why: str) -> AssertionError:
    """The error for one broken rule."""
    return AssertionError(f"{kind.__module__}.{kind.__qualname__} breaks rule {rule!r}: {why}")
