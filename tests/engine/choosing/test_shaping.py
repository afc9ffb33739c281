"""Shapers: the log-sum-exp that they are given, and rows that they would empty."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.engine.choosing.shaping import log_totals
from jaxllama.kernels.accelerator import choice as accelerator_choice
from jaxllama.kernels.cpu import CPU, library
from jaxllama.kernels.plain import PLAIN
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Knob, Sampler, Shaper, knob
from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import kept, log_softmax, random_logits, shares

HEAT = 0.7


class Likely(Shaper):
    """Drops tokens by their log-probability."""

    order = 5
    last = True
    least: Knob = knob(off=-100.0, low=-100.0, high=0.0, help="the lowest log-probability")

    def __call__(self, logits, context):
        return jnp.where(logits - context.log_total(logits) >= self.least, logits, -jnp.inf)


class Emptying(Shaper):
    """Would drop every token."""

    order = 6
    emptying: Knob = knob(off=0, high=1, help="drop every token")

    def __call__(self, logits, context):
        del context
        return jnp.where(self.emptying > 0, -jnp.inf, logits)


@pytest.fixture(scope="module")
def tryout():
    kinds = {
        "likely": Likely,
        "emptying": Emptying,
        "top_k": load_plugins(SAMPLERS, Sampler).loaded["top_k"],
    }
    return Tryout(kinds, vocab=50, slots=40)


@pytest.mark.parametrize("top_k", [0, 20])
def test_log_total_is_that_of_the_tokens_that_are_left(tryout, top_k):
    logits = random_logits(np.random.default_rng(top_k), rows=40)
    found = kept(tryout, logits, {"least": -3.0, "top_k": top_k}, temperature=HEAT)
    before = logits.astype(np.float64) / HEAT
    if top_k:
        before = np.where(before >= np.sort(before, -1)[:, -top_k, None], before, -np.inf)
    expected = log_softmax(before)
    assert np.abs(expected + 3).min() > 1e-5, "no token may lie on the line"
    assert found == [np.flatnonzero(row >= -3).tolist() for row in expected]
    assert any(0 < len(row) < 20 for row in found)


def test_a_row_that_a_shaper_would_empty_stays_as_it_was(tryout):
    logits = random_logits(np.random.default_rng(0), rows=40)
    knobs = [{"emptying": row % 2} for row in range(40)]
    np.testing.assert_allclose(shares(tryout, logits, knobs), log_softmax(logits), atol=1e-4)


@pytest.mark.parametrize(
    "ops",
    [
        PLAIN.choosing,
        accelerator_choice,
        pytest.param(
            CPU.choosing,
            marks=pytest.mark.skipif(not library.available(), reason=library.why_not() or "there"),
        ),
    ],
    ids=["plain", "accelerator", "cpu"],
)
def test_totals_are_those_of_numpy(ops):
    logits = random_logits(np.random.default_rng(1), rows=8, vocab=700)
    logits[:, ::3] = -np.inf
    rows = np.arange(8) % 2 == 0
    found = np.asarray(log_totals(ops, jnp.asarray(logits), jnp.asarray(rows)))
    expected = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-5)
