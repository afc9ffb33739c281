"""Guides: the constraints of all running rows - what each may draw, which answers are whole.

Used by the engine, which says how a token is told and an answer ended. Whatever a constraint raises
fails its own request, and a mask that takes long delays its own row alone. Knows no device; one
answer's guide is in `guide.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.generation import Generation
from jaxllama.engine.guide import Guide
from jaxllama.engine.programs import Programs
from jaxllama.errors import GenerationFailed, JaxLlamaError, RequestError
from jaxllama.request import FinishReason

Tell = Callable[[Generation, int], None]  # the answer has one more token, or ends with it
End = Callable[[Generation, FinishReason, JaxLlamaError | None], None]

WAIT_SECONDS = 0.02  # for a mask where all rows wait for theirs
ROWS_A_TOKEN = 32  # of a prompt cost what a step with one row costs, about


class Guides:
    """The guided answers of one engine."""

    def __init__(self, tell: Tell, end: End, programs: Programs) -> None:
        self._tell, self._end = tell, end
        self._slots, self._bank = programs.engine.slots, programs.bank
        self._tile = programs.tile
        self.waiting: list[Generation] = []  # rows that sat out the last step

    def begin(self, generation: Generation) -> None:
        """Start to follow a constraint; what it forces at once belongs to the prompt."""
        constraint = generation.request.constraint
        if constraint is None or generation.guide is not None:
            return
        try:
            generation.guide = Guide(constraint)
        except Exception as error:
            self._fail(generation, error)
            return
        if generation.guide.is_done:
            self._end(generation, FinishReason.END_TOKEN, None)
        else:
            self._skip(generation, generation.guide, shortest=1)

    def masks(self, running: Sequence[Generation | None]) -> np.ndarray:
        """`Rows.allowed` of the next step.

        A row whose mask is still being computed gets no allowed token, as do the rows of its
        shadow: it sits the step out, is in `waiting`, and the other rows go on. A generation whose
        guide fails has ended.
        """
        allowed = every_token(self._slots, self._bank.vocab)
        self.waiting = []
        for row, owner in enumerate(running):
            if owner is None or owner.guide is None:
                continue
            try:
                if not owner.guide.allow(allowed[row]):
                    allowed[[part.slot for part in owner.parts]] = 0
                    self.waiting.append(owner)
            except Exception as error:
                self._fail(owner, error)
        return allowed

    def wait(self) -> None:
        """Wait, not long, until the first row of `waiting` can go on."""
        guide = self.waiting[0].guide
        if guide is not None:
            guide.wait(WAIT_SECONDS)

    def follow(self, generation: Generation, token: int, *, rows: int) -> bool:
        """The answer has one more token; True if forced ones were added behind it.

        With more `rows` to share steps each token costs less there, but a tile costs what it does.
        """
        guide = generation.guide
        if guide is None:
            return False
        self._advance(generation, guide, token)
        return self._skip(generation, guide, shortest=max(2, rows * self._tile // ROWS_A_TOKEN))

    def _skip(self, generation: Generation, guide: Guide, *, shortest: int) -> bool:
        """Take forced tokens without a step for each.

        Only where no step could have told or remembered anything, and where there are enough.
        """
        request = generation.request
        told = request.top_logprobs is not None or self._bank.remembers(request.knobs)
        told |= request.contrast is not None  # its shadow would need a tile, too
        if told or generation.is_over or generation.replayed or len(guide.due) < shortest:
            return False
        while guide.due and not generation.is_over:
            token = guide.due[0]
            self._tell(generation, token)
            self._advance(generation, guide, token)
        return not generation.is_over

    def _advance(self, generation: Generation, guide: Guide, token: int) -> None:
        """Let the guide know of a token; the answer may be whole with it."""
        if generation.is_over:
            return
        try:
            guide.advance(token)
        except Exception as error:
            self._fail(generation, error)
            return
        if guide.is_done:
            self._end(generation, FinishReason.END_TOKEN, None)

    def _fail(self, generation: Generation, error: Exception) -> None:
        failure: JaxLlamaError
        if isinstance(error, RequestError):  # words for the client already
            failure = error
        else:
            failure = GenerationFailed(
                f"the constraint of this request cannot be followed: {error}"
            )
            failure.__cause__ = error
        self._end(generation, FinishReason.FAILED, failure)
