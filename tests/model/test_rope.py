"""Rotary positions: the rules against the NumPy reference, the rotation against its meaning."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.config import Rope
from jaxllama.errors import InvalidParameter
from jaxllama.kernels.plain import attention as reference
from jaxllama.model import rope
from jaxllama.testing import numpy_llama, tiny

RULES = {
    "plain": Rope(10000.0),
    "linear": Rope(kind="linear", factor=4.0),
    "ntk": Rope(kind="ntk", factor=2.5),
    "llama31": Rope(500000.0, "llama3", factor=8.0),
    "llama32": Rope(500000.0, "llama3", factor=32.0),
    "yarn": Rope(1e6, "yarn", factor=4.0, original_context=32768),
    "yarn_given_scale": Rope(1e4, "yarn", factor=16.0, original_context=4096, attention_factor=1.5),
    "yarn_without_stretch": Rope(1e4, "yarn", factor=1.0, original_context=4096),
    "factors": Rope(kind="factors", factors=tuple(1 + i / 10 for i in range(64))),
}


def turned(rule: Rope, vector: np.ndarray, position: int) -> np.ndarray:
    """One head's vector at one position."""
    cos, sin = rope.tables(rule, len(vector), jnp.array([position]))
    return np.asarray(reference.rotate(jnp.asarray(vector, jnp.float32)[None, None], cos, sin))[
        0, 0
    ]


@pytest.mark.origin("llama-burn: the rotary scaling of Llama 3.1 and 3.2")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_frequencies_and_scale_equal_the_numpy_reference(rule: Rope):
    found, scale = rope.frequencies(rule, 128)
    expected, expected_scale = numpy_llama.frequencies(rule, 128)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert scale == pytest.approx(expected_scale, rel=1e-12)


@pytest.mark.parametrize("other", ["linear", "ntk", "llama31", "yarn", "factors"])
def test_every_rule_differs_from_the_plain_one(other: str):
    plain = Rope(RULES[other].theta)
    assert not np.allclose(rope.frequencies(RULES[other], 128)[0], rope.frequencies(plain, 128)[0])


@pytest.mark.parametrize(("name", "slowdown"), [("llama31", 8.0), ("llama32", 32.0), ("yarn", 4.0)])
def test_stretching_keeps_fast_pairs_and_slows_slow_ones(name: str, slowdown: float):
    rule = RULES[name]
    ratio = rope.frequencies(Rope(rule.theta), 128)[0] / rope.frequencies(rule, 128)[0]
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(slowdown)
    assert np.all(np.diff(ratio) >= -1e-9)


def test_first_position_is_not_turned():
    vector = np.arange(16.0)
    np.testing.assert_allclose(turned(RULES["plain"], vector, 0), vector)


def test_pairs_are_halves_of_the_head_not_neighbours():
    vector = np.zeros(16)
    vector[0] = 1.0
    found = turned(RULES["plain"], vector, 1)
    expected = np.zeros(16)
    expected[0], expected[8] = np.cos(1), np.sin(1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scores_depend_on_distance_only():
    random = np.random.RandomState(0)
    q, k = random.standard_normal((2, 64))
    near = turned(RULES["plain"], q, 7) @ turned(RULES["plain"], k, 3)
    far = turned(RULES["plain"], q, 1007) @ turned(RULES["plain"], k, 1003)
    other = turned(RULES["plain"], q, 8) @ turned(RULES["plain"], k, 3)
    assert near == pytest.approx(far, abs=1e-3)
    assert abs(near - other) > 0.1


def test_neighbouring_positions_stay_apart_at_the_end_of_a_long_context():
    vector = np.ones(64)
    first = turned(RULES["llama31"], vector, 131070)
    second = turned(RULES["llama31"], vector, 131071)
    assert np.abs(first - second).max() > 0.5


@pytest.mark.origin("ExLlama: `-cpe`, `-a` and `-theta`")
def test_overrides_change_base_and_rule():
    model = tiny(rope=Rope(5e5, "llama3", 8.0, original_context=64), max_context=100)
    assert rope.overridden(model) is model
    scaled = rope.overridden(model, scale=4.0)
    assert (scaled.rope, scaled.max_context) == (Rope(5e5, "linear", 4.0), 400)
    assert rope.overridden(model, scale=1.0).rope == Rope(5e5)
    based = rope.overridden(model, theta=1e6)
    assert (based.rope.theta, based.rope.kind, based.max_context) == (1e6, "llama3", 100)
    stretched = rope.overridden(tiny(), alpha=2.0)
    ntk = rope.frequencies(Rope(kind="ntk", factor=2.0), 16)[0]
    np.testing.assert_allclose(rope.frequencies(stretched.rope, 16)[0], ntk)
    assert stretched.max_context == 2 * tiny().max_context
    both = rope.overridden(tiny(), scale=2.0, alpha=2.0, theta=2e4).rope
    assert both == Rope(2e4 * 2 ** (16 / 14), "linear", 2.0)


@pytest.mark.parametrize("name", ["scale", "alpha", "theta"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_overrides_that_are_no_factors_are_refused(name: str, value: float):
    with pytest.raises(InvalidParameter, match=f"rope_{name} is {value}; it must be a number"):
        rope.overridden(tiny(), **{name: value})


def test_factors_are_chosen_by_the_context_of_a_slot():
    factors = {"factors": (1.0,) * 8, "long_factors": (2.0,) * 8}
    model = tiny(rope=Rope(kind="factors", original_context=64, **factors))
    assert rope.fitted(model, 64).rope.factors == (1.0,) * 8
    assert rope.fitted(model, 65).rope.factors == (2.0,) * 8
    assert rope.fitted(model, 65).rope.long_factors == ()
    assert rope.fitted(tiny(), 65) == tiny()


def test_a_part_of_a_head_rotates():
    x = np.random.default_rng(0).standard_normal((3, 2, 16)).astype(np.float32)
    config = tiny(rotary_dim=12)
    cos, sin = rope.layer_tables(config, config.rope, jnp.arange(3))
    found = np.asarray(reference.rotate(rope.pair_up(jnp.asarray(x), 12), cos, sin))
    part = np.asarray(
        reference.rotate(jnp.asarray(x[..., :12]), *rope.tables(config.rope, 12, jnp.arange(3)))
    )
    np.testing.assert_allclose(found[..., [*range(6), *range(8, 14)]], part, rtol=1e-6)
    np.testing.assert_array_equal(found[..., [6, 7, 14, 15]], x[..., 12:])


def test_layers_without_rotation_leave_heads_as_they_are():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 16)), jnp.float32)
    cos, sin = rope.layer_tables(tiny(), None, jnp.arange(3))
    np.testing.assert_array_equal(reference.rotate(x, cos, sin), x)
