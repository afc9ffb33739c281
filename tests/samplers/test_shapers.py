"""Dynamic temperature, smoothing, XTC and adaptive-p: tokens are weighed anew."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, log_softmax, random_logits, shares, softmax

SHARES = np.log([0.125, 0.5, 0.25, 0.125])
LAST = {"temperature_last": True}
SEEDS = np.stack([np.zeros(300), np.arange(300)], axis=-1).astype(np.uint32).tolist()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.exp(found), np.exp(expected), rtol=2e-3, atol=2e-5)


def dynamic(logits: np.ndarray, heat: float, knobs: dict[str, float]) -> np.ndarray:
    p = softmax(logits)
    p = p[p > 0]
    share = -(p * np.log(p)).sum() / np.log(max(len(p), 2))
    low = max(heat - knobs["dynatemp_range"], 0)
    high = heat + knobs["dynatemp_range"]
    now = low + (high - low) * share ** knobs["dynatemp_exponent"]
    return log_softmax(logits / max(now, 1e-3))


def test_temperature_is_low_where_the_model_is_sure_and_high_where_it_is_not(four: Tryout):
    knobs = {"dynatemp_range": 0.5, "dynatemp_exponent": 1.0}
    rows = np.array([[0.0, 0.0, 0.0, 0.0], SHARES, [0.0, 20.0, 1.0, 0.0]])
    found = shares(four, rows, knobs, temperature=1.0)
    for row, expected in enumerate(rows):
        close(found[row], dynamic(expected, 1.0, knobs))
    assert np.exp(found[1, 1]) < 0.5  # its entropy is 0.875 of the largest: 1.375


@pytest.mark.parametrize("fields", [{}, LAST])
def test_dynamic_temperature_agrees_with_numpy_on_random_rows(many: Tryout, fields):
    rng = np.random.default_rng(41)
    for _ in range(ROUNDS // 2):
        logits, heats = random_logits(rng), rng.uniform(0.3, 2, 300)
        knobs = [
            {
                "dynatemp_range": float(rng.uniform(0.05, 1)),
                "dynatemp_exponent": float(rng.uniform(0.5, 2)),
            }
            for _ in range(300)
        ]
        found = shares(many, logits, knobs, temperature=heats, **fields)
        for row in range(300):
            close(found[row], dynamic(logits[row], heats[row], knobs[row]))


def test_late_dynamic_temperature_sees_what_the_filters_leave(four: Tryout):
    # Two equal survivors have the largest entropy there is; of all four it is less.
    logits = np.log([0.4, 0.4, 0.1, 0.1])
    knobs = {"dynatemp_range": 0.5, "top_k": 3, "dynatemp_exponent": 1.0}
    early, late = shares(four, [logits] * 2, knobs, temperature_last=[False, True])
    close(late[:3], dynamic(logits[:3], 1.0, knobs))
    expected = dynamic(logits, 1.0, knobs)[:3]
    close(early[:3], log_softmax(expected))


def smooth(logits: np.ndarray, factor: float, curve: float) -> np.ndarray:
    distance = logits - logits.max()
    square, cube = (3 - curve) / 2, (curve - 1) / 2
    return log_softmax(-factor * square * distance**2 + factor * cube * distance**3)


def test_smoothing_squares_the_distance_from_the_best(four: Tryout):
    logits = np.array([3.0, 2.0, 1.0, -1.0])
    found = shares(four, logits, {"smoothing_factor": 0.5})
    assert np.allclose(found[0], log_softmax([0, -0.5, -2, -8]), atol=1e-5)
    found = shares(four, logits, {"smoothing_factor": 0.5, "smoothing_curve": 3.0})
    assert np.allclose(found[0], log_softmax([0, -0.5, -4, -32]), atol=1e-5)


@pytest.mark.parametrize("fields", [{}, LAST])
def test_smoothing_agrees_with_numpy_on_random_rows(many: Tryout, fields):
    rng = np.random.default_rng(42)
    for _ in range(ROUNDS // 2):
        logits, heats = random_logits(rng), rng.uniform(0.5, 2, 300)
        factors, curves = rng.uniform(0.05, 2, 300), rng.uniform(1, 3, 300)
        knobs = [
            {"smoothing_factor": float(factor), "smoothing_curve": float(curve)}
            for factor, curve in zip(factors, curves, strict=True)
        ]
        found = shares(many, logits, knobs, temperature=heats, **fields)
        for row in range(300):
            close(found[row], smooth(logits[row] / heats[row], factors[row], curves[row]))


def test_top_choices_but_the_least_likely_are_dropped(four: Tryout):
    knobs = [{"xtc_probability": 1.0, "xtc_threshold": t} for t in (0.2, 0.4, 0.1, 0.6)]
    found = kept(four, [SHARES] * 4, knobs)
    # Of tokens 0 and 3, as likely as each other, the one that comes last is spared.
    assert found == [[0, 2, 3], [0, 1, 2, 3], [3], [0, 1, 2, 3]]


def test_top_choices_are_excluded_as_often_as_asked(many: Tryout):
    logits = np.tile(np.linspace(3, 0, 50), (300, 1))
    knobs = {"xtc_probability": 0.3, "xtc_threshold": 0.05}
    counts = [
        sum(0 not in row for row in kept(many, logits, knobs, seed=SEEDS, length=length))
        for length in range(1, 9)
    ]
    # 2,400 times with a chance of 0.3: 720 with a deviation of 22.
    assert abs(sum(counts) - 720) < 75


@pytest.mark.parametrize("fields", [{}, LAST])
def test_xtc_agrees_with_numpy_behind_a_filter(many: Tryout, fields):
    rng = np.random.default_rng(43)
    for _ in range(ROUNDS):
        logits, lines = random_logits(rng), rng.uniform(0.01, 0.5, 300)
        knobs = [
            {"min_p": 0.02, "xtc_probability": 1.0, "xtc_threshold": float(line)} for line in lines
        ]
        found = kept(many, logits, knobs, temperature=0.7, **fields)
        heated = logits if fields else logits / 0.7
        for row, line in enumerate(lines):
            p = softmax(heated[row])
            left = np.flatnonzero(p >= 0.02 * p.max())
            share = p[left] / p[left].sum()
            top = left[share >= line]
            dropped = set(top[np.argsort(-p[top], kind="stable")][:-1].tolist())
            assert found[row] == [token for token in left.tolist() if token not in dropped]


def near(logits: np.ndarray, aim: float) -> np.ndarray:
    distance = np.abs(softmax(logits) - np.clip(aim, 0, 1)) / 0.3
    return log_softmax(5 - 10 * distance**2 / (1 + distance))


def test_tokens_near_the_target_are_preferred(four: Tryout):
    found = shares(four, SHARES, {"adaptive_target": 0.25})
    close(found[0], near(SHARES, 0.25))
    assert found[0].argmax() == 2


def test_list_of_what_could_be_drawn_is_sorted_anew(four: Tryout):
    choice = four.choose([SHARES] * 2, [{"adaptive_target": 0.25}] * 2, temperature_last=True)
    assert choice.sampled_ids[0, 0] == 2
    choice = four.choose([SHARES] * 2, [{"adaptive_target": 0.25, "top_k": 3}] * 2)
    assert choice.sampled_ids[0, 0] == 2
    assert np.all(np.diff(choice.sampled_logprobs[0, :3]) <= 0)


@pytest.mark.parametrize(
    "fields", [{}, {"top_k": 40}, LAST, {"top_k": 40, **LAST}], ids=["", "k", "last", "k last"]
)
def test_adaptive_target_moves_against_what_was_chosen(many: Tryout, fields):
    rng = np.random.default_rng(44)
    knobs = {"adaptive_target": 0.4, "adaptive_decay": 0.8, **fields}
    last = {"temperature_last": bool(knobs.pop("temperature_last", False))}
    filled = many.fill(knobs)
    total, weight = np.full(300, 0.4 / 0.2), np.full(300, 1 / 0.2)
    for step in range(4):
        logits = (rng.normal(size=(300, 50)) * 4).astype(np.float32)
        seeds = np.stack([np.full(300, step), np.arange(300)], axis=-1).astype(np.uint32).tolist()
        filled, choice = many.step(filled, logits, seed=seeds, temperature=0.9, **last)
        heated = logits.astype(np.float64) / 0.9
        if "top_k" in fields:
            heated[heated < np.sort(heated, -1)[:, -40, None]] = -np.inf
        aim = 2 * 0.4 - total / weight
        for row in range(0, 300, 7):
            left = heated[row] > -np.inf
            expected = near(heated[row][left], aim[row])
            found = np.full(50, -np.inf)
            found[choice.sampled_ids[row][: left.sum()]] = choice.sampled_logprobs[row][
                : left.sum()
            ]
            close(found[left], expected)
        total = softmax(heated)[np.arange(300), choice.token] + 0.8 * total
        weight = 1 + 0.8 * weight
        np.testing.assert_allclose(filled["adaptive_p"].total, total, rtol=1e-4)


def test_average_probability_settles_near_the_target(many: Tryout):
    rng = np.random.default_rng(45)
    filled = many.fill({"adaptive_target": 0.3, "min_p": 0.05})
    chosen = []
    for step in range(40):
        logits = (rng.normal(size=(300, 50)) * 3).astype(np.float32)
        seeds = np.stack([np.full(300, step), np.arange(300)], axis=-1).astype(np.uint32).tolist()
        before = filled["adaptive_p"].total
        filled, _ = many.step(filled, logits, seed=seeds)
        chosen.append(float(np.mean(filled["adaptive_p"].total - 0.9 * before)))
    assert abs(np.mean(chosen[10:]) - 0.3) < 0.05


def test_shapers_act_in_order_around_the_temperature(many: Tryout):
    rng = np.random.default_rng(46)
    logits = random_logits(rng)
    knobs = {"dynatemp_range": 0.4, "smoothing_factor": 0.3, "adaptive_target": 0.3}
    found = shares(many, logits, knobs, temperature=0.8)
    for row in range(300):
        heated = dynamic(logits[row], 0.8, knobs | {"dynatemp_exponent": 1.0})
        close(found[row], near(smooth(heated, 0.3, 1.0), 0.3))


def test_nothing_is_shaped_at_temperature_zero(four: Tryout):
    knobs = {"adaptive_target": 0.25, "xtc_probability": 1.0, "smoothing_factor": 1.0}
    assert four.choose(SHARES, knobs, temperature=0.0).token.tolist() == [1]
