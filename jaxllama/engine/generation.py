"""Generation: one live request with its phase, its tokens and its times.

Created by `Engine.submit`, changed by the engine alone. Knows token ids; its `tail` makes text. A
request with a negative prompt has a guidance row while it holds slots: a second generation with
that prompt, which emits no events and takes the tokens that its leader draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from jaxllama.engine.guide import Guide
from jaxllama.engine.prompt_store import StoredPrefix
from jaxllama.request import GenerationRequest, TextTail, Usage


class Phase(Enum):
    """The phase of a generation; DONE is final."""

    WAITING = auto()  # in the queue
    FILLING = auto()  # holds a slot; its prompt is in prefill
    RUNNING = auto()  # a row of the decode batch
    DONE = auto()


@dataclass(slots=True, eq=False)
class Generation:
    """One request inside the engine, from the queue to its last event."""

    id: int
    request: GenerationRequest
    tail: TextTail | None
    submitted: float
    client: str = ""  # prompts of different clients take turns
    is_common: bool = True  # it uses only common samplers, which every decode program has
    phase: Phase = Phase.WAITING
    slot: int = -1
    filled: int = 0  # prompt tokens in the cache
    source: int | None = None  # slot from which a shared prefix will be copied ...
    follows: int | None = None  # ... once the generation with this id has computed it
    stored: StoredPrefix | None = None  # a prefix that is being written back into the slot
    in_cache: bool = False  # all known tokens but the last are in the cache
    reused: int = 0  # prompt tokens that were cached already
    leader: "Generation | None" = None  # of a guidance row: the generation whose tokens it takes
    guidance: "Generation | None" = None  # the guidance row, if the request has a negative prompt
    emitted: list[int] = field(default_factory=list)
    sampled: int = 0  # tokens drawn, the end token included
    drafted: int = 0  # tokens that speculation proposed
    accepted: int = 0  # of these, tokens that were drawn
    guide: Guide | None = None  # follows the answer through the request's constraint
    replayed: int = 0  # tokens still to be drawn again after a fault; they were emitted before it
    faults: int = 0
    first: float | None = None  # when the first token arrived
    ended: float = 0.0

    @property
    def is_over(self) -> bool:
        """Say whether the generation has ended."""
        return self.phase is Phase.DONE

    @property
    def known(self) -> Sequence[int]:
        """List prompt and emitted tokens; all but the last must be cached before a decode step."""
        return (*self.request.prompt, *self.emitted) if self.emitted else self.request.prompt

    @property
    def missing(self) -> int:
        """Count the known tokens that must still be computed before a decode step."""
        return len(self.request.prompt) + len(self.emitted) - 1 - self.filled

    @property
    def parts(self) -> "tuple[Generation, ...]":
        """List the generations that hold a slot for this request.

        These are the generation itself and the one that computes its negative prompt, if there is
        one.
        """
        return (self,) if self.guidance is None else (self, self.guidance)

    def add_guidance_row(self, id_: int) -> None:
        """Create the guidance row if the request has a negative prompt; `id_` is its id.

        The guidance row is a second generation, which decodes the negative prompt without samplers
        of its own. The logits of the request are moved away from those of the guidance row. Both
        generations share one list of emitted tokens.
        """
        request, contrast = self.request, self.request.contrast
        if contrast is None:
            return
        plain = GenerationRequest(
            contrast.prompt,
            request.max_tokens,
            temperature=0.0,
            stop_ids=request.stop_ids,
            adapter=request.adapter,
        )
        self.guidance = Generation(
            id_, plain, None, self.submitted, self.client, leader=self, emitted=self.emitted
        )

    def rewind(self, *, redraw: bool) -> None:
        """Set the generation back to the phase WAITING after a fault.

        With `redraw`, all emitted tokens are dropped and drawn again, but not emitted a second
        time. Without it they are kept, and prefilled after the prompt.
        """
        self.phase, self.slot = Phase.WAITING, -1
        self.source = self.follows = self.guidance = self.stored = None
        if redraw:
            self.replayed += len(self.emitted)
            self.emitted.clear()
            self.guide = None

    @property
    def newest(self) -> int:
        """Return the last token, which is the input of the next decode step."""
        return self.emitted[-1] if self.emitted else self.request.prompt[-1]

    def usage(self) -> Usage:
        """Count the tokens and seconds that the request has taken so far."""
        first = self.submitted if self.first is None else self.first
        return Usage(
            prompt=len(self.request.prompt),
            reused=self.reused,
            generated=self.sampled,
            dropped=self.request.dropped,
            drafted=self.drafted,
            accepted=self.accepted,
            seconds_to_first=first - self.submitted,
            seconds=self.ended - self.submitted,
        )
