"""Test rows for samplers: many kinds of logits, with every setting that the knobs declare.

Used by the conformance checks. Knows no sampler; all settings come from the knobs' declarations.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllama.engine.choosing.rows import Rows
from jaxllama.sampling import NO_TOKEN, KnobSpec

VOCAB = 64
TOKENS = 16
STOP_IDS = (3, 5)
CERTAIN = 7
LISTED = 2

Setting = dict[str, object]


class Case(NamedTuple):
    """A test row for samplers: its knobs, its logits and its state."""

    setting: Setting
    logits: np.ndarray
    row: Rows


def cases_of(specs: Mapping[str, KnobSpec]) -> Iterator[Case]:
    """Yield test rows: several kinds of logits under each of several knob settings.

    Knobs are a sampler's parameters; `specs` are their declarations by name. Only the settings
    depend on `specs`: the logits and the row states are the same for all samplers.
    """
    rng = np.random.default_rng(0)
    wild = rng.normal(size=VOCAB) * 4
    banned = np.where(np.arange(VOCAB) % 2, wild, -np.inf)
    certain = np.where(np.arange(VOCAB) == CERTAIN, 1e4, wild)
    single = np.where(np.arange(VOCAB) == CERTAIN, 1.0, -np.inf)
    for setting in [{}, *settings_of(specs)]:
        for logits in (wild, np.zeros(VOCAB), certain, banned, single):
            yield Case(setting, logits.astype(np.float32), row_of(rng))


def settings_of(specs: Mapping[str, KnobSpec]) -> Iterator[Setting]:
    """Yield settings of all knobs: all low, all middle, all high, then random mixtures.

    Knobs are a sampler's parameters; `specs` are their declarations by name.
    """
    rng = np.random.default_rng(0)
    choices = {name: values_of(spec) for name, spec in specs.items()}
    for place in range(3):
        yield {name: values[place] for name, values in choices.items()}
    for _ in range(3):
        yield {name: values[rng.integers(3)] for name, values in choices.items()}


def values_of(spec: KnobSpec) -> list[object]:
    """Return three values that a knob accepts: low, middle and high, or example texts.

    A knob is a parameter of a sampler, declared by `spec`.
    """
    if spec.text is not None:
        return [spec.text.examples[place % len(spec.text.examples)] for place in range(3)]
    return [value_of(spec, number) for number in numbers_of(spec)]


def numbers_of(spec: KnobSpec) -> tuple[float | int | bool, ...]:
    """Return a low, a middle and a high number that a knob, a sampler's parameter, accepts."""
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
    """Return a value for a knob, made from `number`: the number, a list with it, or a dict.

    A knob is a parameter of a sampler; its declaration `spec` says which of these it accepts. The
    keys of the dict are token ids.
    """
    if spec.by_token:
        return {0: number, "7": number, VOCAB - 1: spec.off}
    if spec.phrases:
        return [[number], [CERTAIN, number]]
    return number if spec.width is None else [number] * min(spec.width, 3)


def row_of(rng: np.random.Generator) -> Rows:
    """Return a random row state: at the first token, in the middle, or with a full context."""
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


def stacked(trees: list[Any]) -> Any:
    """Stack the arrays of trees of the same structure along a new first axis, a row per tree."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def at(tree: Any, place: int) -> Any:
    """Return a copy of the tree in which every array is replaced by its row number `place`."""
    return jax.tree.map(lambda leaf: leaf[place], tree)


def same(one: Any, other: Any) -> bool:
    """Say whether the trees `one` and `other` have equal arrays, in the same order."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
