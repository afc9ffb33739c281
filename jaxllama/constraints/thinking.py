"""Thinking first: a constraint that begins after the thoughts of an answer, and bounds them.

Made by the intake for answers whose prompt has opened the thoughts. Knows token ids and the bytes
of tokens; no model, no request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from jaxllama.constraints.masks import every_bit, only_bit, without_bits
from jaxllama.request import Follower, TokenConstraint
from jaxllama.text.thoughts import THOUGHT_CLOSER

CLOSER = THOUGHT_CLOSER.encode()


@dataclass(frozen=True)
class ThinkFirst:
    """A constraint that leaves the thoughts free, for at most `budget` tokens.

    `then` is the constraint on the text after the thoughts.
    """

    then: TokenConstraint | None
    budget: int | None
    closing: tuple[int, ...]  # the tokens that end the thoughts when the budget is used up
    gap: tuple[int, ...]  # the tokens between thoughts and answer
    ends: frozenset[int]  # end tokens, which may not come inside the thoughts if `then` is given
    piece: Callable[[int], bytes]  # the bytes of a token
    vocab: int

    def start(self) -> "ThinkingFollower":
        """Return the state of the constraint for a new answer, which begins with thinking."""
        return ThinkingFollower(self)


class ThinkingPhase(Enum):
    """The part of the answer that is being written: thoughts, their end, or the text after them."""

    THINKING = auto()
    FORCED = auto()  # the tokens around the end of the thoughts
    ANSWERING = auto()


class ThinkingFollower:
    """The state of one answer: its thoughts, then what follows them."""

    def __init__(self, rules: ThinkFirst) -> None:
        self._rules = rules
        self._then: Follower | None = None if rules.then is None else rules.then.start()
        self._phase = ThinkingPhase.THINKING
        self._thought = 0  # tokens
        self._tail = b""  # the last bytes, in which the closer is looked for
        self._forced: Sequence[int] = ()
        self._left = 0  # forced tokens that have not come yet
        self._everything = every_bit(rules.vocab)
        self._inside = self._everything
        if self._then is not None:
            self._inside = without_bits(self._everything, rules.ends)
        self._check_budget()

    @property
    def done(self) -> bool:
        """Say whether the answer is complete, so that no token can follow."""
        return self._phase is ThinkingPhase.ANSWERING and self._then is not None and self._then.done

    def allowed(self, wait: float = 0.0) -> bytes | None:
        """Return the mask of allowed next tokens; None if it is not ready after `wait` seconds.

        While the model thinks, every token is allowed, except the end tokens if there is a
        constraint on the text after the thoughts.
        """
        match self._phase:
            case ThinkingPhase.THINKING:
                return self._inside
            case ThinkingPhase.FORCED:
                token = self._forced[len(self._forced) - self._left]
                return only_bit(self._rules.vocab, token)
            case ThinkingPhase.ANSWERING:
                return self._everything if self._then is None else self._then.allowed(wait)

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next, because no others are allowed; may be empty.

        They end the thoughts, or the constraint on the text after the thoughts forces them.
        """
        if self._phase is ThinkingPhase.FORCED:
            return self._forced[len(self._forced) - self._left :]
        if self._phase is ThinkingPhase.ANSWERING and self._then is not None:
            return self._then.forced()
        return ()

    def advance(self, token: int) -> None:
        """Advance by a token that was added to the answer."""
        match self._phase:
            case ThinkingPhase.THINKING:
                self._think(token)
            case ThinkingPhase.FORCED:
                self._left -= 1
                if not self._left:
                    self._phase = ThinkingPhase.ANSWERING
            case ThinkingPhase.ANSWERING:
                if self._then is not None:
                    self._then.advance(token)

    def _think(self, token: int) -> None:
        self._thought += 1
        self._tail += self._rules.piece(token)
        _, closer, after = self._tail.partition(CLOSER)
        if closer:
            # With a constraint, the model has no other way to write the gap.
            needs_gap = self._then is not None and not after
            self._force(self._rules.gap if needs_gap else ())
            return
        self._tail = self._tail[-len(CLOSER) :]
        self._check_budget()

    def _check_budget(self) -> None:
        budget = self._rules.budget
        if budget is not None and self._thought >= budget:
            self._force(self._rules.closing)

    def _force(self, tokens: Sequence[int]) -> None:
        self._forced, self._left = tokens, len(tokens)
        self._phase = ThinkingPhase.FORCED if tokens else ThinkingPhase.ANSWERING
