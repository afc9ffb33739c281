"""Guides: the constraints of all running rows - the masks of allowed tokens, the forced tokens.

Used by the engine, which passes the functions that emit a token and end an answer. An error of a
constraint fails only its own request, and a slow mask delays only its own row. Decides whether
forced tokens are drawn, or emitted at once and computed by the next decode step or as a prompt.
Knows no device; the guide of one answer is in `guide.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.forced import nothing_forced
from jaxllama.engine.generation import Generation
from jaxllama.engine.guide import Guide
from jaxllama.engine.programs import Programs
from jaxllama.errors import GenerationFailed, JaxLlamaError, RequestError
from jaxllama.request import FinishReason, GenerationRequest
from jaxllama.shapes import Int32, UInt32

EmitToken = Callable[[Generation, int], None]  # adds a token to the answer and emits it
EndAnswer = Callable[[Generation, FinishReason, JaxLlamaError | None], None]

WAIT_SECONDS = 0.02  # most seconds to wait for a mask when every row waits for one
ROWS_A_TOKEN = 32  # prompt rows that cost about as much as a step with one row
FEW_ROWS = 2  # with more, steps that compute several tokens of a row beat prompt tiles


class Masks(NamedTuple):
    """The tokens that each row may draw in a decode step: forced ones, then one of its mask."""

    allowed: UInt32[np.ndarray, "S W"]  # a bit per token; none set: the row skips the step
    forced: Int32[np.ndarray, "2 S N"] | None  # ForcedTokens; None without speculation

    def leave_out(self, generation: Generation) -> None:
        """Let a generation's rows skip the step, that of its negative prompt included."""
        self.allowed[[part.slot for part in generation.parts]] = 0


class Guides:
    """Follows the constraints of all requests of one engine."""

    def __init__(self, emit: EmitToken, end: EndAnswer, programs: Programs) -> None:
        self._emit, self._end = emit, end
        self._slots, self._bank = programs.engine.slots, programs.bank
        self._tile = programs.tile
        self._prefills = programs.body.steps_match_prompts()  # forced tokens
        self._most = programs.engine.draft_tokens  # forced tokens of a row in a step
        self._most_drawn = self._most if programs.engine.row_cost < 1 else 0
        self.waiting: list[Generation] = []  # rows that skip this step: no mask yet
        self.given: list[Generation] = []  # rows whose forced tokens the next step computes

    def begin(self, generation: Generation) -> None:
        """Start to follow a request's constraint; emit the tokens that it forces at the start.

        These tokens are then prefilled with the prompt. Does nothing without a constraint.
        """
        constraint = generation.request.constraint
        if constraint is None or generation.guide is not None:
            return
        try:
            is_drawn = self._is_drawn(generation.request)
            generation.guide = Guide(constraint, 1 + self._most, is_drawn=is_drawn)
        except Exception as error:
            self._fail(generation, error)
            return
        if generation.guide.is_done:
            self._end(generation, FinishReason.END_TOKEN, None)
        else:
            self._skip(generation, generation.guide, shortest=1)

    def masks(self, running: Sequence[Generation | None]) -> Masks:
        """Return the tokens that rows with a constraint may draw in the next step.

        `running` has the generation of each row, None for an unused row. A row whose mask is still
        being computed gets no allowed token, nor does the row of its negative prompt: both skip the
        step, and the attribute `waiting` lists the generation. Forced tokens, the only ones that a
        constraint allows, are emitted if they need not be drawn, and the attribute `given` lists
        their generations. A generation whose constraint fails is ended.
        """
        masks = Masks(
            every_token(self._slots, self._bank.vocab), nothing_forced(self._slots, self._most)
        )
        self.waiting, self.given = [], []
        for row, owner in enumerate(running):
            if owner is None or owner.guide is None:
                continue
            most = self._most_drawn if owner.guide.is_drawn else self._most
            left = owner.request.max_tokens - len(owner.emitted)
            try:
                forced = owner.guide.allow(masks.allowed[row], min(most, left - 1))
            except Exception as error:
                self._fail(owner, error)
                continue
            if forced is None:
                masks.leave_out(owner)
                self.waiting.append(owner)
            elif forced and masks.forced is not None:
                masks.forced[int(owner.guide.is_drawn), row, : len(forced)] = forced
                if not owner.guide.is_drawn:
                    self._give(owner, owner.guide, forced)
        return masks

    def _give(self, generation: Generation, guide: Guide, tokens: Sequence[int]) -> None:
        """Emit forced tokens that the next step computes; add the generation to `given`.

        Forced tokens are the only ones that the constraint of `guide` allows. The generation is not
        added if it ends at one of them.
        """
        for token in tokens:
            if not generation.is_over:
                self._emit(generation, token)
                self._advance(generation, guide, token)
        if not generation.is_over:
            self.given.append(generation)

    def _is_drawn(self, request: GenerationRequest) -> bool:
        """Say whether the samplers have to draw even the forced tokens of a request.

        A forced token is the only one that the constraint allows. It has to be drawn if the request
        asks for log-probabilities, or if one of its samplers keeps state.
        """
        return request.top_logprobs is not None or self._bank.remembers(request.knobs)

    def wait(self) -> None:
        """Wait at most WAIT_SECONDS for the mask of the first generation in `waiting`.

        This attribute lists the generations whose mask of allowed tokens is still being computed.
        If the constraint fails meanwhile, ends the generation.
        """
        generation = self.waiting[0]
        assert generation.guide is not None
        try:
            generation.guide.wait(WAIT_SECONDS)
        except Exception as error:
            self._fail(generation, error)

    def follow(self, generation: Generation, token: int) -> None:
        """Advance a generation's constraint, if it has one, by `token`, the one that was drawn."""
        if generation.guide is not None:
            self._advance(generation, generation.guide, token)

    def skip(self, generation: Generation, *, rows: int) -> bool:
        """Emit the forced tokens that come next at once, if there are enough of them.

        A forced token is the only one that the constraint allows. Returns True if they were emitted
        and then have to be prefilled. The more `rows` share a decode step, the cheaper is a token
        in a step, so the more forced tokens are needed.
        """
        guide = generation.guide
        return guide is not None and self._skip(generation, guide, shortest=self._shortest(rows))

    def _shortest(self, rows: int) -> float:
        """Return how many forced tokens of a row are worth prefilling instead of decoding.

        A forced token is the only one that the constraint allows. `rows` is the number of rows that
        share a decode step. If a step computes several forced tokens of a row, prefill is faster
        only for many tokens and at most FEW_ROWS rows; with more rows the result is infinity.
        """
        if not self._most:
            return max(2, rows * self._tile // ROWS_A_TOKEN)
        return rows * (1 + self._most) if rows <= FEW_ROWS else math.inf

    def _skip(self, generation: Generation, guide: Guide, *, shortest: float) -> bool:
        """Emit all forced tokens at once; return True if the row then has to be prefilled.

        A forced token is the only one that the constraint `guide` allows. Returns False, and emits
        nothing, if each token has to be drawn, or if there are fewer than `shortest`. If prefill
        rounds differently from decode steps, or the request has a negative prompt, tokens are
        emitted only if the answer ends with them. Also returns False if the answer has ended.
        """
        if generation.is_over or generation.replayed or guide.is_drawn:
            return False
        # With guidance, the row of the negative prompt would need a tile, too.
        fills = self._prefills and generation.request.contrast is None
        if not guide.is_ending and not (fills and len(guide.due) >= shortest):
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
