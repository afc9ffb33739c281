"""What callers of the Python API get back.

Built by `llm.py`, printed by the CLI. Plain data.
"""

import math
from dataclasses import dataclass

from jaxllama.request import FinishReason, TokenLogprobs, Usage


@dataclass(frozen=True)
class Completion:
    """One finished answer; `tokens` make `text`, the end token is not among them."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one per token, if asked for
    stop: str | None = None  # the stop string that ended it

    @property
    def mean_logprob(self) -> float:
        """How likely the model found its tokens, on average; needs `logprobs`."""
        values = [each.logprob for each in self.logprobs or ()]
        return math.fsum(values) / len(values) if values else -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """One of the answers that a beam search found; the end token is not among its tokens."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprob: float  # of the whole, the end token included
    score: float  # by which they are ranked


@dataclass(frozen=True)
class Delta:
    """One step of a streamed answer; `text` may be empty while a character is incomplete."""

    text: str
    token: int | None = None  # None: held-back text at the end
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Score:
    """How likely the model finds a continuation."""

    logprob: float  # of the whole continuation
    token_logprobs: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Classification:
    """How likely each choice is, if it must be one of them."""

    choices: tuple[str, ...]
    probabilities: tuple[float, ...]
    scores: tuple[Score, ...]

    @property
    def choice(self) -> str:
        """The likeliest; of equals, the first."""
        return self.choices[max(range(len(self.choices)), key=self.probabilities.__getitem__)]


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean surprise per token; the first token of a window is not predicted."""

    value: float
    tokens: int  # predicted
    seconds: float
