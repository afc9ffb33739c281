"""What tests of samplers share: random rows, and what a bank made of them by token id."""

import numpy as np

from jaxllama.testing.tryout import Tryout

ROUNDS = 8  # of three hundred rows each


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits))


def shares(tryout: Tryout, logits: object, knobs: object, **fields: object) -> np.ndarray:
    """Log-probabilities as sampled, by token id; -inf where a token was dropped."""
    choice = tryout.choose(logits, knobs, **fields)
    found = np.full(choice.sampled_ids.shape, -np.inf)
    for row, ids in enumerate(choice.sampled_ids):
        alive = choice.sampled_logprobs[row] > -np.inf
        found[row, ids[alive]] = choice.sampled_logprobs[row][alive]
    return found


def kept(tryout: Tryout, logits: object, knobs: object, **fields: object) -> list[list[int]]:
    """The tokens that may be drawn in every row, by id."""
    found = shares(tryout, logits, knobs, **fields)
    return [np.flatnonzero(row > -np.inf).tolist() for row in found]


def descending(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and probabilities of one row, likeliest first."""
    order = np.argsort(-logits, kind="stable")
    return order, softmax(logits)[order]


def floats(value: float, *, digits: int = 6) -> float:
    """A knob's value as the row holds it, so that both sides compare with the same number."""
    return float(np.float32(round(value, digits)))


def random_logits(rng: np.random.Generator, rows: int = 300, vocab: int = 50) -> np.ndarray:
    """From nearly flat to nearly certain, as float32."""
    return (rng.normal(size=(rows, vocab)) * rng.uniform(0.3, 6, (rows, 1))).astype(np.float32)
