"""Scoring: log-probabilities of continuations of a prompt, and embeddings of texts.

Used by the Python API and the server, which run the engine's probes (`peek`, `embed`).
Knows token ids, text and numbers; starts nothing.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from jaxllama.completion import Classification, Score
from jaxllama.engine.engine import Engine
from jaxllama.engine.probes import InSteps
from jaxllama.errors import GenerationFailed, InvalidParameter
from jaxllama.intake import Intake, Prompt
from jaxllama.request import AdapterUse

LONGEST_SHORT = 32  # most tokens of a continuation scored with others; longer ones fill tiles
AT_A_TIME = 64  # continuations that are scored together


class Pooling(StrEnum):
    """The hidden states from which the vector of a whole text is made."""

    MEAN = "mean"  # of all its tokens
    LAST = "last"  # its last token, which has seen all others


def continuations(
    intake: Intake, prompt: Sequence[int], texts: Sequence[Prompt], name: str = "continuations"
) -> list[list[int]]:
    """Return the token ids of each of `texts`, each of which is to follow the prompt.

    `intake` has the tokenizer. `name` is the request's field with the texts, for errors. Raises
    InvalidParameter for an empty prompt or text, PromptTooLong if a text does not fit after the
    prompt.
    """
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
    """Tokenize a text that follows other text, so that it gets no begin-of-text token."""
    if isinstance(text, str):
        return intake.tokenizer.encode(text, begin=False, start=False, most=intake.most)
    return intake.ids(text)


def rounds(tails: Sequence[Sequence[int]]) -> list[list[int]]:
    """Divide continuations into groups to score together; return the indexes of each group.

    `tails` are the continuations' token ids. Short ones form groups of a limited size, long ones
    are alone, so that no group keeps other clients waiting for long.
    """
    short = [index for index, tail in enumerate(tails) if len(tail) <= LONGEST_SHORT]
    together = [short[at : at + AT_A_TIME] for at in range(0, len(short), AT_A_TIME)]
    alone = [[index] for index, tail in enumerate(tails) if len(tail) > LONGEST_SHORT]
    return together + alone


def tokens_to_score(prompt: Sequence[int], tails: Sequence[Sequence[int]]) -> int:
    """Return an upper bound of the tokens that are computed to score continuations of a prompt.

    `tails` are the continuations' token ids.
    """
    return len(prompt) + sum(map(len, tails))


def score(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    adapter: AdapterUse | None = None,
) -> InSteps[list[np.ndarray]]:
    """Compute the log-probability of each token of several continuations.

    The continuation `tails[i]` follows `prompts[i]`, both as token ids. Pass a single continuation,
    or a limited group of short ones (see `rounds`). `adapter` is the LoRA adapter to compute with,
    None: none. A generator: it yields how many tokens each device call computed, and returns one
    array for each continuation. Raises QueueFull while no slot is free.
    """
    if len(tails) == 1:
        ids = [*prompts[0], *tails[0]]
        probe = engine.probes.peek(ids, len(prompts[0]), adapter=adapter)
        return [(yield from probe)[0]]
    pairs = zip(prompts, tails, strict=True)
    continuations = [([*prompt, *tail], len(prompt)) for prompt, tail in pairs]
    return (yield from engine.probes.score(continuations, adapter=adapter))


def as_score(logprobs: np.ndarray, tail: Sequence[int]) -> Score:
    """Build the score of a continuation from the log-probabilities of its tokens.

    `tail` are its token ids. Raises GenerationFailed if the model produced NaN.
    """
    values = tuple(logprobs.tolist())
    total = math.fsum(values)
    if math.isnan(total):
        raise GenerationFailed("the model produced NaN for this text")
    return Score(total, values, tuple(tail))


def probabilities(scores: Sequence[Score], *, length_normalize: bool) -> list[float]:
    """Return the probability of each continuation, given that one of them must follow.

    `scores` are those of the continuations. With `length_normalize`, the mean over a continuation's
    tokens counts, so that long ones are not at a disadvantage.
    """
    worths = [one.logprob / (len(one.tokens) if length_normalize else 1) for one in scores]
    best = max(worths)
    shares = [math.exp(worth - best) for worth in worths]
    total = math.fsum(shares)
    return [share / total for share in shares]


def classified(
    choices: Sequence[str], scores: Sequence[Score], *, length_normalize: bool
) -> Classification:
    """Build the classification of a prompt from the scores of the choices, in the same order.

    With `length_normalize`, the mean log-probability of a choice's tokens counts, not the sum.
    """
    shares = probabilities(scores, length_normalize=length_normalize)
    return Classification(tuple(choices), tuple(shares), tuple(scores))


def check_choices(choices: Sequence[str], name: str = "choices") -> None:
    """Raise InvalidParameter if there is no choice, or a choice occurs twice.

    `name` is the request's field with the choices, for the error.
    """
    if not choices or len(set(choices)) < len(choices):
        raise InvalidParameter(
            f"{name} is {list(choices)!r:.200}; expected at least one, and each once", name
        )


def as_embedding(found: tuple[np.ndarray, np.ndarray], pooling: Pooling) -> np.ndarray:
    """Return the vector that `pooling` names, scaled to length 1.

    `found` holds the mean of a text's hidden states, then the last of them. Raises GenerationFailed
    if the vector is zero or not finite.
    """
    vector = found[pooling is Pooling.LAST]
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise GenerationFailed("the model's embedding of this text is zero or not finite")
    return (vector / length).astype(np.float32)
