"""Scoring: how likely a model finds texts that could follow a prompt; what it makes of a text.

Used by the Python API and the server, which ask the engine (`peek`, `embed`) in ways of their own.
Knows token ids, text and numbers; starts nothing.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from jaxllama.completion import Score
from jaxllama.errors import GenerationFailed, InvalidParameter
from jaxllama.intake import Intake, Prompt


class Pooling(StrEnum):
    """What one vector for a whole text is made of."""

    MEAN = "mean"  # of all its tokens
    LAST = "last"  # its last token, which has seen all others


def continuations(
    intake: Intake, prompt: Sequence[int], texts: Sequence[Prompt], name: str = "continuations"
) -> list[list[int]]:
    """What could go on after a prompt, as token ids; refused unless each fits behind it."""
    if not prompt:
        raise InvalidParameter("prompt is empty; a score needs at least one token", "prompt")
    tails = []
    for text in texts:
        tail = (
            intake.tokenizer.encode(text, begin=False)
            if isinstance(text, str)
            else intake.ids(text)
        )
        if not tail:
            raise InvalidParameter(f"{name} holds an empty one; expected text", name)
        intake.engine.check_length(len(prompt) + len(tail), 0)
        tails.append(tail)
    return tails


def as_score(logprobs: np.ndarray, tail: Sequence[int]) -> Score:
    """The score of a continuation from its tokens' log-probabilities."""
    values = tuple(logprobs.tolist())
    total = math.fsum(values)
    if math.isnan(total):
        raise GenerationFailed("the model's numbers for this text are not numbers")
    return Score(total, values, tuple(tail))


def probabilities(scores: Sequence[Score], *, length_normalize: bool) -> list[float]:
    """How likely each of some continuations is if it must be one of them.

    With `length_normalize` the mean over a continuation's tokens counts, so that long ones are not
    at a disadvantage.
    """
    worths = [one.logprob / (len(one.tokens) if length_normalize else 1) for one in scores]
    best = max(worths)
    shares = [math.exp(worth - best) for worth in worths]
    total = math.fsum(shares)
    return [share / total for share in shares]


def as_embedding(found: tuple[np.ndarray, np.ndarray], pooling: Pooling) -> np.ndarray:
    """One vector of length 1 from what `Engine.embed` returns."""
    vector = found[pooling is Pooling.LAST]
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise GenerationFailed("the model's numbers for this text are not numbers")
    return (vector / length).astype(np.float32)
