"""The types of requests to the engine and of the events it emits.

Requests are built by the Python API and the dialects, and processed by the engine. Knows no arrays,
and no text except finished strings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from jaxllama.errors import JaxLlamaError

GOLDEN = 0x9E3779B97F4A7C15  # odd, so that all streams of one prompt have different seeds


def choice_seed(seed: int, index: int) -> int:
    """Return the seed of answer number `index` to a prompt; answer 0 has the request's `seed`."""
    return (seed + index * GOLDEN) & (2**63 - 1)


class FinishReason(StrEnum):
    """The reason why a generation ended."""

    LENGTH = "length"
    END_TOKEN = "end_token"
    STOP_STRING = "stop_string"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Follower(Protocol):
    """Follows one answer through a constraint; an exception it raises fails only this answer."""

    @property
    def done(self) -> bool:
        """Say whether the answer is complete, so that no token can follow."""

    def allowed(self, wait: float = 0.0) -> bytes | None:
        """Return the mask of allowed next tokens, end tokens included; one bit each, lowest first.

        Returns None if another thread has not computed it within `wait` seconds. The engine then
        asks again at the next step, while the other rows of the batch continue.
        """

    def forced(self) -> Sequence[int]:
        """Return the tokens that have to come next; `advance` must still be called with each."""

    def advance(self, token: int) -> None:
        """Advance by a token that was added to the answer."""


class TokenConstraint(Protocol):
    """The compiled form that an answer must have; any number of answers can follow it."""

    def start(self) -> Follower:
        """Return a new follower, which applies the constraint to one answer from its start."""


@dataclass(frozen=True)
class Contrast:
    """A second prompt from which the answer is moved away: classifier-free guidance.

    Each token is drawn from the logits `other + scale * (own - other)`, where `other` are the
    logits after this second prompt and the same answer.
    """

    prompt: tuple[int, ...]
    scale: float  # 1: no effect; > 1: away from the second prompt; < 1: towards the second prompt


@dataclass(frozen=True)
class AdapterUse:
    """A loaded low-rank adapter that a request uses, and the scale of its effect."""

    id: int  # of this loading: an adapter loaded later has another id
    number: int  # its place in the adapter arrays
    scale: float = 1.0


@dataclass(frozen=True)
class GenerationRequest:
    """One checked prompt in token ids, and the settings with which to continue it."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    temperature_last: bool = False
    seed: int = 0
    stop_ids: tuple[int, ...] = ()  # the model's own end tokens included unless ignored
    top_logprobs: int | None = None  # None: no log-probabilities; n: chosen token and n others
    knobs: Mapping[str, object] = field(default_factory=dict)
    constraint: TokenConstraint | None = None
    contrast: Contrast | None = None
    adapter: AdapterUse | None = None
    dropped: int = 0  # messages left out of the prompt, because it would not fit into the context
    draft: int | None = None  # most tokens that a step drafts; None: as many as pay; 0: none

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Return the prompts that need a slot each: the prompt, then the guidance prompt if any."""
        return (self.prompt,) if self.contrast is None else (self.prompt, self.contrast.prompt)

    @property
    def cost(self) -> int:
        """Return the most tokens, prompt and generated, that the request can have in its slots."""
        return sum(len(prompt) + self.max_tokens for prompt in self.prompts)


@dataclass(frozen=True)
class Usage:
    """The tokens and seconds that one generation used."""

    prompt: int  # tokens of the prompt
    reused: int  # of these, taken from the cache
    generated: int  # tokens sampled, the end token included
    seconds_to_first: float = 0.0
    seconds: float = 0.0
    dropped: int = 0  # messages of the conversation that the prompt leaves out
    drafted: int = 0  # tokens that speculation proposed
    accepted: int = 0  # of these, tokens of the answer


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, by the model alone and after the samplers."""

    logprob: float  # of the chosen token under the model (temperature 1, nothing removed)
    sampled: float  # of the chosen token under the distribution it was drawn from
    top: tuple[tuple[int, float], ...] = ()  # likeliest tokens under the model
    top_sampled: tuple[tuple[int, float], ...] = ()  # likeliest tokens as sampled


@dataclass(frozen=True)
class Token:
    """The event of one generated token; `text` is the text that became safe to show, maybe ""."""

    id: int  # of the generation
    token: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Finished:
    """The last event of a generation; `text` is the rest of the text that was kept back."""

    id: int
    reason: FinishReason
    usage: Usage
    text: str = ""
    stop: str | None = None  # the stop string that was met
    error: JaxLlamaError | None = None
    end_token: int | None = None  # the token in `stop_ids` that was drawn


Event = Token | Finished


class TextTail(Protocol):
    """Converts token ids to text while they arrive; `text/tail.py` implements it for the engine."""

    def push(self, token: int) -> str:
        """Add a token and return the text that can be shown now.

        Text that may become a stop string, and incomplete characters, are kept back.
        """

    def flush(self) -> str:
        """End the text and return what was kept back."""

    @property
    def stopped(self) -> str | None:
        """Return the stop string at which the text ended; None if it met none."""
