"""The seed contract with every installed sampler on: alone, all at once, in any company."""

import dataclasses

import numpy as np
import pytest

from jaxllama.request import Contrast
from jaxllama.sampling import KnobSpec, knobs_of
from tests.engine.test_determinism import same
from tests.support import (
    BODIES,
    MODEL,
    QuickPrograms,
    closed,
    installed_samplers,
    new_engine,
    request,
    run,
)

# Everything the draw depends on: what a knob is at its extreme may leave one token only.
GENTLE = {
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "top_a": 0.01,
    "tfs_z": 0.99,
    "typical_p": 0.95,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-4,
    "top_n_sigma": 3.0,
    "mirostat": 2,
    "adaptive_target": 0.2,
    "temperature_noise": 1.0,
    "repetition_penalty": 1.1,
    "xtc_probability": 0.5,
    "dynatemp_range": 0.3,
    "smoothing_factor": 0.2,
}


def example(name: str, spec: KnobSpec) -> object:
    """A value that switches a knob on."""
    if spec.text is not None:
        return spec.text.examples[-1]
    if spec.phrases:
        return [[3], [5, 7]]
    if spec.by_token:
        return {9: 1.0}
    if spec.tokens:
        return list(range(0, 200, 2)) if name == "allowed_tokens" else [4, 6]
    number = GENTLE.get(name, spec.off + 1 if spec.kind is int else 0.5)
    return True if spec.kind is bool else number if spec.width is None else [number]


def switched_on() -> dict[str, dict[str, object]]:
    """For every sampler the knobs that switch it on, and all of them together."""
    each = {
        name: {knob: example(knob, spec) for knob, spec in knobs_of(kind).items() if spec.switch}
        for name, kind in installed_samplers().items()
        if not getattr(kind, "constrains", False)
    }
    return each | {"all": {knob: value for knobs in each.values() for knob, value in knobs.items()}}


@pytest.mark.parametrize("body", BODIES)
def test_no_company_no_neighbours_sampler_and_no_draft_changes_a_token(body):
    """Alone without speculation, in a crowd with it, where the body has it."""
    rng = np.random.default_rng(5)
    drafts = 3 if body.kernels == "cpu" else 0
    body = dataclasses.replace(body, draft_tokens=drafts)
    pool = [
        request(
            rng.integers(0, 256, 6).tolist() * 2,
            6,
            temperature=heat,
            temperature_last=bool(rng.random() < 0.3),
            seed=index,
            knobs=knobs,
            contrast=Contrast((5, index), 1.5) if index % 4 == 0 else None,
        )
        for heat in (0.0, 1.2)
        for index, knobs in enumerate(switched_on().values())
    ]
    engine = new_engine(MODEL, body, samplers=None, kind=QuickPrograms)
    alone = [run(engine, [dataclasses.replace(one, draft=0)])[0] for one in pool]
    order = rng.permutation(len(pool))
    crowd = run(engine, [dataclasses.replace(pool[index], draft=drafts) for index in order])
    for place, index in enumerate(order):
        assert same(alone[index], crowd[place], body), f"{pool[index].knobs} came out differently"
    assert closed(engine)
    assert (engine.drafts["accepted"] > 0) == (drafts > 0)


def test_every_sampler_is_tried():
    assert set(switched_on()) >= {"dry", "xtc", "mirostat", "adaptive_p", "typical_p", "all"}
    assert all(switched_on().values())
