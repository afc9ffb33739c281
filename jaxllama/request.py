"""The words all floors share: what goes into the engine and what comes out.

Built by whoever asks (Python API, dialects), consumed by the engine. Knows no arrays, no text
beyond finished strings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from jaxllama.errors import JaxLlamaError

GOLDEN = 0x9E3779B97F4A7C15  # odd, so that no two streams of one prompt share a seed


def choice_seed(seed: int, index: int) -> int:
    """The seed of stream `index` of one prompt: stream 0 has the request's own."""
    return (seed + index * GOLDEN) & (2**63 - 1)


class FinishReason(StrEnum):
    """Why a generation ended."""

    LENGTH = "length"
    END_TOKEN = "end_token"
    STOP_STRING = "stop_string"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Follower(Protocol):
    """Follows one answer through a constraint; whatever it raises fails that answer alone."""

    @property
    def done(self) -> bool:
        """The answer is whole, and no token can follow."""

    def allowed(self, wait: float = 0.0) -> bytes | None:
        """A bit per token, the lowest first: what may come next, end tokens included.

        None while another thread still computes it, after at most `wait` seconds; the engine asks
        again at the next step, and the other rows of the batch go on.
        """

    def forced(self) -> Sequence[int]:
        """Tokens that come next whatever the model thinks; they are not taken yet."""

    def advance(self, token: int) -> None:
        """A token was added to the answer."""


class Constraint(Protocol):
    """What an answer has to look like: compiled once, followed by any number of answers."""

    def start(self) -> Follower:
        """A follower at the beginning of an answer."""


@dataclass(frozen=True)
class Contrast:
    """A second prompt that an answer is moved away from: classifier-free guidance.

    Each token is drawn from the logits `other + scale * (own - other)`, where `other` are those
    behind this prompt and the same answer.
    """

    prompt: tuple[int, ...]
    scale: float  # 1: not moved; above, away from the other; below, towards it


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt in token ids, and how to continue it; already validated."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    temperature_last: bool = False
    seed: int = 0
    stop_ids: tuple[int, ...] = ()  # the model's own end tokens included unless ignored
    top_logprobs: int | None = None  # None: no log-probabilities; n: the chosen and n others
    knobs: Mapping[str, object] = field(default_factory=dict)
    constraint: Constraint | None = None
    contrast: Contrast | None = None

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """What takes a slot each: the prompt, and the one that the answer is moved away from."""
        return (self.prompt,) if self.contrast is None else (self.prompt, self.contrast.prompt)

    @property
    def cost(self) -> int:
        """Tokens it may come to in all its slots."""
        return sum(len(prompt) + self.max_tokens for prompt in self.prompts)


@dataclass(frozen=True)
class Usage:
    """What one generation cost."""

    prompt: int  # tokens of the prompt
    reused: int  # of these, taken from the cache
    generated: int  # tokens sampled, the end token included
    seconds_to_first: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities at one position, under the model and as sampled."""

    logprob: float  # of the chosen token under the model (temperature 1, nothing removed)
    sampled: float  # of the chosen token under the distribution it was drawn from
    top: tuple[tuple[int, float], ...] = ()  # likeliest tokens under the model
    top_sampled: tuple[tuple[int, float], ...] = ()  # likeliest tokens as sampled


@dataclass(frozen=True)
class Token:
    """One generated token; `text` is what became safe to show, possibly nothing."""

    id: int  # of the generation
    token: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Finished:
    """The last event of a generation; `text` is what a held-back tail still owed."""

    id: int
    reason: FinishReason
    usage: Usage
    text: str = ""
    stop: str | None = None  # the stop string that was met
    error: JaxLlamaError | None = None


Event = Token | Finished


class TextTail(Protocol):
    """Turns token ids into text as they come; the engine calls it, `text/tail.py` is it."""

    def push(self, token: int) -> str:
        """Text that became safe to show with this token."""

    def flush(self) -> str:
        """Whatever was still held back, now that the generation is over."""

    @property
    def stopped(self) -> str | None:
        """The stop string that was met, if one was."""
