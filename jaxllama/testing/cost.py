"""The cost of a sampler: the microseconds that it adds to each row of a decode step.

Used by `jaxllama check`. Times the compiled bank alone, many steps within one call as the decode
program does, on logits as peaked as in text. Counts processor time on one thread, which other
processes on the machine hardly change. They only add time, so the quickest of many turns counts for
each kind of step, and the kinds take turns. The error is estimated from the difference between the
quickest of some turns and the quickest of all. Knows no sampler.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import TokenChooser
from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.engine.choosing.rows import Rows
from jaxllama.kernels import fastest_body
from jaxllama.kernels.cpu import library
from jaxllama.sampling import NO_TOKEN, Filter, Sampler
from jaxllama.testing.cases import Setting, settings_of, stacked

RunSteps = Callable[[int], Any]  # runs this number of steps

VOCABULARIES = (32_768, 131_072)
ROWS = 8
CONTEXT = 1024  # tokens a row can hold; it starts with half as many
CANDIDATES = 256
TURNS = 120
SPLIT = 4  # groups of turns; their quickest turns are compared
SECONDS_PER_TURN = 0.003
STEEPNESS = 3.0  # the share of a token falls with this power of its rank


class Cost(NamedTuple):
    """Microseconds of one processor per row and step, at one size of vocabulary."""

    vocabulary: int
    alone: float
    company: float | None  # beside all other filters, switched on too; None: there are none
    unseen: float  # the error of the figures


class Added(NamedTuple):
    """The seconds by which one kind of decode step takes longer than another."""

    best: float
    doubt: float  # the error, from the quickest turns of each group


def cost_of(
    name: str, kind: type[Sampler], company: Mapping[str, type[Sampler]], vocab: int
) -> Cost:
    """Measure the processor time that a sampler adds to a row of a decode step.

    `name` and `kind` are the sampler's name and class, `vocab` the number of tokens, `company`
    other samplers by name. The sampler is measured alone, and together with the samplers of
    `company` that are filters. Every knob (parameter) is in the middle of its bounds.
    """
    others = {key: each for key, each in company.items() if issubclass(each, Filter)}
    others.pop(name, None)
    bank = SamplerBank(
        {**others, name: kind},
        vocab=vocab,
        candidates=CANDIDATES,
        top_logprobs=1,
        body=fastest_body().name,
    )
    own, theirs = middle({name: kind}), middle(others)
    pairs = [({}, own), (theirs, {**theirs, **own})] if others else [({}, own)]
    rng = np.random.default_rng(0)
    peaked = -STEEPNESS * np.log1p(np.arange(vocab, dtype=np.float32))
    logits = jax.device_put(stacked([rng.permutation(peaked) for _ in range(ROWS)]))
    steps = jax.jit(partial(choose_again, bank))
    rows = full_rows(rng, vocab)

    def call(knobs: Setting) -> RunSteps:
        leaves = jax.device_put(stacked([bank.row(knobs)] * ROWS))
        return partial(steps, leaves, logits, rows)

    with one_thread():
        alone, *beside = (added(call(without), call(with_it)) for without, with_it in pairs)
    each = 1e6 / ROWS
    beside_others = beside[0].best * each if beside else None
    doubt = max(found.doubt for found in (alone, *beside))
    return Cost(vocab, alone.best * each, beside_others, doubt * each)


def middle(samplers: Mapping[str, type[Sampler]]) -> Setting:
    """Return values for the knobs (parameters) of these samplers: the middle of their bounds."""
    return list(settings_of(catalogue(samplers)))[1]


def full_rows(rng: np.random.Generator, vocab: int) -> Rows:
    """Return the state of ROWS random rows in the middle of an answer, at temperature 1.

    `vocab` is the number of tokens.
    """
    leaves: dict[str, Any] = {
        "tokens": rng.integers(0, vocab, (ROWS, CONTEXT), np.int32),
        "length": np.full(ROWS, CONTEXT // 2, np.int32),
        "prompt": np.full(ROWS, CONTEXT // 4, np.int32),
        "stop_ids": np.full((ROWS, 1), NO_TOKEN, np.int32),
        "temperature": np.ones(ROWS, np.float32),
        "temperature_last": np.zeros(ROWS, np.bool_),
        "seed": rng.integers(0, 2**32, (ROWS, 2), np.uint32),
        "active": np.ones(ROWS, np.bool_),
        "top_logprobs": np.full(ROWS, -1, np.int32),
    }
    return jax.device_put(Rows(**leaves))


def choose_again(bank: SamplerBank, leaves: Any, logits: Any, rows: Rows, count: Any) -> Any:
    """Choose a token for every row, `count` times in one compiled loop.

    `bank` has the samplers, `leaves` their parameters and state as arrays. Every turn of the loop
    uses the same `logits`, and rows that are one token longer. Returns (new leaves, last tokens).
    """
    chooser = TokenChooser(bank)

    def one(index: Any, carry: Any) -> Any:
        # The barrier hides that the logits are equal: XLA cannot move work out of the loop.
        now, _ = lax.optimization_barrier((logits, index))
        length = rows.length + index % (CONTEXT // 2)
        return chooser.choose(carry[0], now, rows._replace(length=length))

    shapes = jax.eval_shape(chooser.choose, leaves, logits, rows)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[1])
    return lax.fori_loop(0, count, one, (leaves, blank))


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context, run the C++ kernels on one thread.

    Waiting threads would spin, and add processor time.
    """
    before = library.threads() if library.available() else 0
    if before:
        library.set_threads(1)
    try:
        yield
    finally:
        if before:
            library.set_threads(before)


def added(without: RunSteps, with_it: RunSteps) -> Added:
    """Measure by how many seconds a step of `with_it` is longer than one of `without`.

    Both are functions that run as many decode steps as they are asked to.
    """
    pair = (without, with_it)
    for call in pair:
        call(1)  # compiles
    # The same number of steps in both, so that the overhead of a call cancels out.
    steps = max(1, int(SECONDS_PER_TURN / max(seconds(call, 1) for call in pair)))
    turns = np.array([[seconds(call, steps) for call in pair] for _ in range(TURNS)])
    quickest = np.array([turns[group::SPLIT].min(axis=0) for group in range(SPLIT)])
    best = quickest.min(axis=0)
    doubt = np.median(quickest, axis=0) - best
    return Added(float(best[1] - best[0]), float(doubt.sum()))


def seconds(call: RunSteps, steps: int) -> float:
    """Return the processor seconds per step, measured in one call of `steps` steps."""
    started = time.process_time()
    jax.block_until_ready(call(steps))
    return (time.process_time() - started) / steps
