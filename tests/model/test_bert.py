"""Parts of encoders against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.model import bert

RANDOM = np.random.default_rng(0)
TEXT = np.array([0, 0, 0, 1, 2, 2, -1, -1], np.int32)
X = RANDOM.standard_normal((8, 4)).astype(np.float32)
ROWS = [X[:3], X[3:4], X[4:6]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [rows.mean(0) for rows in ROWS]),
        ("mean_sqrt", [rows.sum(0) / len(rows) ** 0.5 for rows in ROWS]),
        ("cls", [rows[0] for rows in ROWS]),
        ("last", [rows[-1] for rows in ROWS]),
        ("max", [rows.max(0) for rows in ROWS]),
    ],
)
def test_pooling_takes_the_rows_of_each_text(name, expected):
    found = bert.POOLINGS[name](jnp.asarray(X), jnp.asarray(TEXT), 4)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5)


@pytest.mark.parametrize("at_a_time", [512, 4])
def test_tokens_attend_to_their_own_text_only(monkeypatch, at_a_time):
    monkeypatch.setattr(bert, "QUERIES", at_a_time)
    q, k, v = RANDOM.standard_normal((3, 2, 8, 4)).astype(np.float32)
    bias = RANDOM.standard_normal((2, 8, 8)).astype(np.float32)
    found = bert.attend(*map(jnp.asarray, (q, k, v, TEXT, bias)))
    for rows in (slice(0, 3), slice(3, 4), slice(4, 6)):
        scores = q[:, rows] @ k[:, rows].swapaxes(1, 2) / 2 + bias[:, rows, rows]
        share = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(found[:, rows], share @ v[:, rows], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found).all()


def test_distances_are_exact_near_and_logarithmic_far():
    distance = jnp.arange(-200, 201)[None]
    found = dict(
        zip(range(-200, 201), bert.distance_classes(distance, 32)[0].tolist(), strict=True)
    )
    assert [found[each] for each in (0, -1, -7, -8, -16, -32, -64, -127, -128, -200)] == [
        *(0, 1, 7, 8, 10, 12, 14, 15, 15, 15)
    ]
    assert [found[each] for each in (1, 7, 8, 200)] == [17, 23, 24, 31]
