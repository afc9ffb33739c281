"""Guides: the constraints of all running rows - the masks of allowed tokens, the forced tokens.

Used by the engine, which passes the functions that emit a token and end an answer. An error of a
constraint fails only its own request, and a slow mask delays only its own row. Knows no device; the
guide of one answer is in `guide.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.generation import Generation
from jaxllama.engine.guide import Guide
from jaxllama.engine.programs import Programs
from jaxllama.errors import GenerationFailed, JaxLlamaError, RequestError
from jaxllama.request import FinishReason

EmitToken = Callable[[Generation, int], None]  # adds a token to the answer and emits it
EndAnswer = Callable[[Generation, FinishReason, JaxLlamaError | None], None]

WAIT_SECONDS = 0.02  # most seconds to wait for a mask when every row waits for one
ROWS_A_TOKEN = 32  # prompt rows that cost about as much as a step with one row


class Guides:
    """Follows the constraints of all requests of one engine."""

    def __init__(self, emit: EmitToken, end: EndAnswer, programs: Programs) -> None:
        self._emit, self._end = emit, end
        self._slots, self._bank = programs.engine.slots, programs.bank
        self._tile = programs.tile
        self._prefills = programs.body.steps_match_prompts()  # forced tokens
        self.waiting: list[Generation] = []  # rows that skip this step: no mask yet

    def begin(self, generation: Generation) -> None:
        """Start to follow a request's constraint; emit the tokens that it forces at the start.

        These tokens are then prefilled with the prompt. Does nothing without a constraint.
        """
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
        """Return the masks of allowed tokens (`Rows.allowed`) for the next step; fill `waiting`.

        `running` has the generation of each row, None for none. A row whose mask is still being
        computed gets no allowed token, nor does the row of its negative prompt: both skip the step,
        and `waiting` lists the generation. A generation whose guide fails is ended.
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
        """Wait at most WAIT_SECONDS for the mask of the first row of `waiting`."""
        guide = self.waiting[0].guide
        if guide is not None:
            guide.wait(WAIT_SECONDS)

    def follow(self, generation: Generation, token: int, *, rows: int) -> bool:
        """Advance a generation's constraint by `token`, the one that was drawn.

        Returns True if forced tokens after it were emitted, which then have to be prefilled. That
        happens only if there are enough of them: the more `rows` share a decode step, the cheaper
        is a token in a step.
        """
        guide = generation.guide
        if guide is None:
            return False
        self._advance(generation, guide, token)
        return self._skip(generation, guide, shortest=max(2, rows * self._tile // ROWS_A_TOKEN))

    def _skip(self, generation: Generation, guide: Guide, *, shortest: int) -> bool:
        """Emit all forced tokens at once; return True if the row then has to be prefilled.

        A forced token is the only one that the constraint `guide` allows. Returns False, and emits
        nothing, if there are fewer than `shortest`, or if each token needs a decode step: for
        log-probabilities, for samplers that keep state, or because prefill gives other bits. Also
        returns False if the answer has ended.
        """
        request = generation.request
        needs_steps = request.top_logprobs is not None or self._bank.remembers(request.knobs)
        needs_steps |= request.contrast is not None  # its guidance row would need a tile, too
        needs_steps |= not self._prefills  # a prompt tile would give the tokens other bits
        if needs_steps or generation.is_over or generation.replayed or len(guide.due) < shortest:
            return False
        while guide.due and not generation.is_over:
            token = guide.due[0]
            self._emit(generation, token)
            self._advance(generation, guide, token)
        return not generation.is_over

    def _advance(self, generation: Generation, guide: Guide, token: int) -> None:
        """Advance a guide by one token; end the answer if it is complete or the guide fails."""
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
        if isinstance(error, RequestError):  # its message is written for the client
            failure = error
        else:
            failure = GenerationFailed(
                f"the constraint of this request cannot be followed: {error}"
            )
            failure.__cause__ = error
        self._end(generation, FinishReason.FAILED, failure)
