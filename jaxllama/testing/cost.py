"""What a sampler costs: microseconds that it adds to each row of a step.

Used by `jaxllama check`. Times the compiled bank alone, on logits as peaked as after words;
knows no sampler.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllama.engine.bank import Rows, SamplerBank
from jaxllama.engine.knobs import catalogue
from jaxllama.kernels import cpu
from jaxllama.sampling import Filter, Sampler
from jaxllama.testing.cases import Setting, row_of, settings_of, stacked

VOCABULARIES = (32_768, 131_072)
ROWS = 8
CANDIDATES = 256
ROUNDS = 12  # of which the quickest counts
STEEPNESS = 3.0  # the share of a token falls with this power of its rank


class Cost(NamedTuple):
    """Microseconds per row and step at one size of vocabulary."""

    vocabulary: int
    alone: float
    company: float  # with every filter of the company switched on, too


def cost_of(
    name: str, kind: type[Sampler], company: Mapping[str, type[Sampler]], vocab: int
) -> Cost:
    """What the sampler adds with its knobs in the middle of their bounds."""
    others = {key: each for key, each in company.items() if issubclass(each, Filter)}
    others.pop(name, None)
    bank = SamplerBank(
        {**others, name: kind},
        vocab=vocab,
        candidates=CANDIDATES,
        top_logprobs=1,
        body="cpu" if cpu.available() else "xla",
    )
    own, theirs = middle({name: kind}), middle(others)
    rng = np.random.default_rng(0)
    peaked = -STEEPNESS * np.log1p(np.arange(vocab, dtype=np.float32))
    logits = jax.device_put(stacked([rng.permutation(peaked) for _ in range(ROWS)]))
    plain: Any = row_of(rng)
    row = plain._replace(temperature=np.float32(1.0), top_logprobs=np.int32(-1))
    rows: Rows = jax.device_put(stacked([row] * ROWS))
    step = jax.jit(bank.choose)
    calls = [
        partial(step, jax.device_put(stacked([bank.row(knobs)] * ROWS)), logits, rows)
        for knobs in ({}, own, theirs, {**theirs, **own})
    ]
    none, alone, company_only, both = quickest(calls)
    each = 1e6 / ROWS
    return Cost(vocab, (alone - none) * each, (both - company_only) * each)


def middle(samplers: Mapping[str, type[Sampler]]) -> Setting:
    """Every knob of these samplers in the middle of its bounds."""
    return list(settings_of(catalogue(samplers)))[1]


def quickest(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Seconds of each call at its quickest, taken in turn."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for place, call in enumerate(calls):
            started = time.perf_counter()
            jax.block_until_ready(call())
            best[place] = min(best[place], time.perf_counter() - started)
    return best
