"""Results of the Python API.

Built by `llm.py`, printed by the CLI. Plain data.
"""

import math
from dataclasses import dataclass

from jaxllama.request import FinishReason, TokenLogprobs, Usage


@dataclass(frozen=True)
class Completion:
    """One finished answer; `tokens` are the tokens of `text`, without the end token."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one per token, if requested
    stop: str | None = None  # the stop string that ended the answer

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the tokens; -inf without `logprobs`."""
        values = [each.logprob for each in self.logprobs or ()]
        return math.fsum(values) / len(values) if values else -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """One of the answers that a beam search found; `tokens` leaves out the end token."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float  # of the whole answer, including the end token
    score: float  # by which the answers are ranked


@dataclass(frozen=True)
class Delta:
    """One step of a streamed answer; `text` may be empty while a character is incomplete."""

    text: str
    token: int | None = None  # None: held-back text at the end
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Score:
    """The log-probability of a continuation after its prompt."""

    logprob: float  # of the whole continuation
    token_logprobs: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Classification:
    """The probability of each choice, given that the answer is one of the choices."""

    choices: tuple[str, ...]
    probabilities: tuple[float, ...]
    scores: tuple[Score, ...]

    @property
    def choice(self) -> str:
        """The likeliest choice; of equally likely ones, the first."""
        return self.choices[max(range(len(self.choices)), key=self.probabilities.__getitem__)]


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a text: exp of the mean negative log-probability per token.

    The first token of a window is not predicted.
    """

    value: float
    tokens: int  # number of predicted tokens
    seconds: float
