"""Generation: one live request - where it is, what it has produced, when.

Created by `Engine.submit`, changed by the engine alone. Knows token ids; its `tail` makes text. One
with a contrast has a shadow while it holds slots: a second generation behind the other prompt, of
which nobody is told and whose answer is its leader's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from jaxllama.engine.guide import Guide
from jaxllama.request import GenerationRequest, TextTail, Usage


class Phase(Enum):
    """Where a generation is; DONE is final."""

    WAITING = auto()  # in the queue
    FILLING = auto()  # holds a slot; its prompt is on the way into the cache
    RUNNING = auto()  # a row of the decode batch
    DONE = auto()


@dataclass(slots=True, eq=False)
class Generation:
    """One request on its way through the engine."""

    id: int
    request: GenerationRequest
    tail: TextTail | None
    submitted: float
    client: str = ""  # prompts of different clients take turns
    phase: Phase = Phase.WAITING
    slot: int = -1
    filled: int = 0  # prompt tokens in the cache
    source: int | None = None  # slot the beginning will be copied from ...
    follows: int | None = None  # ... once this generation has computed it
    in_cache: bool = False  # all known tokens but the last are
    reused: int = 0
    leader: "Generation | None" = None  # of a shadow
    shadow: "Generation | None" = None
    emitted: list[int] = field(default_factory=list)
    sampled: int = 0  # tokens drawn, the end token included
    guide: Guide | None = None  # where the answer is in its request's constraint
    replayed: int = 0  # tokens still to be drawn again after a fault, not to be told twice
    faults: int = 0
    first: float | None = None  # when the first token arrived
    ended: float = 0.0

    @property
    def is_over(self) -> bool:
        """Nothing more will be told of it."""
        return self.phase is Phase.DONE

    @property
    def known(self) -> Sequence[int]:
        """What has to be in the cache (all but the last) for the next token to be drawn."""
        return (*self.request.prompt, *self.emitted) if self.emitted else self.request.prompt

    @property
    def parts(self) -> "tuple[Generation, ...]":
        """Itself, and its shadow: whatever holds a slot for it."""
        return (self,) if self.shadow is None else (self, self.shadow)

    def cast_shadow(self, id_: int) -> None:
        """Begin the second row of a contrast: greedy, plain, and always saying what this one says.

        The answers are one list, so what is known of the one is known of the other.
        """
        request, contrast = self.request, self.request.contrast
        if contrast is None:
            return
        plain = GenerationRequest(
            contrast.prompt, request.max_tokens, temperature=0.0, stop_ids=request.stop_ids
        )
        self.shadow = Generation(
            id_, plain, None, self.submitted, self.client, leader=self, emitted=self.emitted
        )

    @property
    def newest(self) -> int:
        """The last known token: the one that is fed next."""
        return self.emitted[-1] if self.emitted else self.request.prompt[-1]

    def usage(self) -> Usage:
        """What it cost so far."""
        first = self.submitted if self.first is None else self.first
        return Usage(
            prompt=len(self.request.prompt),
            reused=self.reused,
            generated=self.sampled,
            seconds_to_first=first - self.submitted,
            seconds=self.ended - self.submitted,
        )
