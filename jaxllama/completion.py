"""What callers of the Python API get back.

Built by `llm.py`, printed by the CLI. Plain data.
"""

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
class Perplexity:
    """exp of the mean surprise per token; the first token of a window is not predicted."""

    value: float
    tokens: int  # predicted
    seconds: float
