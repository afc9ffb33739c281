"""A profile of a compiled program shows the names of the source, and the names cost nothing."""

import contextlib
import re

import jax
import pytest

from jaxllama.engine.blueprints import leaves_of
from jaxllama.engine.steps import Steps
from tests.support import BODIES, FEW, MODEL, programs

SAMPLERS = set(FEW)
CHOOSING = {"adjust", "survey", "draw", "best_candidates", "close_ranks", "list_likeliest"}
MODEL_PARTS = {"embed", "rope_tables", "block_0", "attention", "attend_step", "feed_forward"}


def lowered(size):
    """The decode program before XLA compiles it."""
    shared = programs(MODEL, size)
    steps = Steps(MODEL, size, shared.bank)

    def decode(*arguments):
        state, output = steps.decode(*arguments)
        return leaves_of(state), output

    with jax.set_mesh(shared.mesh):
        return jax.jit(decode).lower(*shared.blueprints._arguments("decode"))


@pytest.mark.parametrize("size", BODIES)
def test_every_part_of_a_decode_step_has_its_name_and_the_code_stays_the_same(size, monkeypatch):
    found = lowered(size)
    names = set(
        re.findall(r"\w+", " ".join(re.findall(r'loc\("(jit.*?)"', found.as_text(debug_info=True))))
    )
    expected = SAMPLERS | CHOOSING | MODEL_PARTS | {"head", "apply_guidance", "mirostat_observes"}
    assert expected <= names
    monkeypatch.setattr(jax, "named_scope", lambda _: contextlib.nullcontext())
    assert lowered(size).as_text() == found.as_text()
