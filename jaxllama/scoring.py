"""Scoring: how likely a model finds texts that could follow a prompt; what it makes of a text.

Used by the Python API and the server, which run the engine's probes (`peek`, `embed`).
Knows token ids, text and numbers; starts nothing.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from jaxllama.completion import Classification, Score
from jaxllama.engine.engine import Engine, InSteps
from jaxllama.errors import GenerationFailed, InvalidParameter
from jaxllama.intake import Intake, Prompt

LONGEST_SHORT = 32  # tokens of a continuation that is weighed with others; longer ones fill tiles
AT_A_TIME = 64  # of those


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
        tail = following(intake, text)
        if not tail:
            raise InvalidParameter(f"{name} holds an empty one; expected text", name)
        intake.engine.check_length(len(prompt) + len(tail), 0)
        tails.append(tail)
    return tails


def following(intake: Intake, text: Prompt) -> list[int]:
    """The token ids of what goes on after other text."""
    if isinstance(text, str):
        return intake.tokenizer.encode(text, begin=False, start=False, most=intake.most)
    return intake.ids(text)


def rounds(tails: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which continuations to ask the engine for at a time, so that nobody waits long for it."""
    short = [index for index, tail in enumerate(tails) if len(tail) <= LONGEST_SHORT]
    together = [short[at : at + AT_A_TIME] for at in range(0, len(short), AT_A_TIME)]
    alone = [[index] for index, tail in enumerate(tails) if len(tail) > LONGEST_SHORT]
    return together + alone


def tokens_to_weigh(prompt: Sequence[int], tails: Sequence[Sequence[int]]) -> int:
    """How many tokens the engine computes at most for tails of one prompt."""
    return len(prompt) + sum(map(len, tails))


def weigh(
    engine: Engine, prompts: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]
) -> InSteps[list[np.ndarray]]:
    """Log-probabilities of each tail's tokens behind its prompt, for one of `rounds`.

    A generator, as the engine's probes are; raises QueueFull while no slot is free.
    """
    if len(tails) == 1:
        look = engine.peek_in_steps([*prompts[0], *tails[0]], len(prompts[0]))
        return [(yield from look)[0]]
    pairs = zip(prompts, tails, strict=True)
    continuations = [([*prompt, *tail], len(prompt)) for prompt, tail in pairs]
    return (yield from engine.weigh_in_steps(continuations))


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


def classified(
    choices: Sequence[str], scores: Sequence[Score], *, length_normalize: bool
) -> Classification:
    """What the scores of the choices say."""
    shares = probabilities(scores, length_normalize=length_normalize)
    return Classification(tuple(choices), tuple(shares), tuple(scores))


def check_choices(choices: Sequence[str], name: str = "choices") -> None:
    """Refuse fewer than one choice, and the same one twice."""
    if not choices or len(set(choices)) < len(choices):
        raise InvalidParameter(
            f"{name} is {list(choices)!r:.200}; expected at least one, and each once", name
        )


def as_embedding(found: tuple[np.ndarray, np.ndarray], pooling: Pooling) -> np.ndarray:
    """One vector of length 1 from what `Engine.embed` returns."""
    vector = found[pooling is Pooling.LAST]
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise GenerationFailed("the model's numbers for this text are not numbers")
    return (vector / length).astype(np.float32)
