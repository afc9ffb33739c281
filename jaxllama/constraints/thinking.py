"""Thinking first: a constraint that begins after the thoughts of an answer, and bounds them.

Made by the intake for answers whose prompt has opened the thoughts. Knows token ids and the bytes
of tokens; no model, no request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from jaxllama.request import Constraint, Follower

CLOSER = b"</think>"


@dataclass(frozen=True)
class ThinkFirst:
    """Leaves the thoughts free, for at most `budget` tokens; `then` holds the text after them."""

    then: Constraint | None
    budget: int | None
    closing: tuple[int, ...]  # the tokens that end the thoughts when the budget is used up
    gap: tuple[int, ...]  # the tokens between thoughts and answer
    ends: frozenset[int]  # end tokens, which may not come inside the thoughts if `then` is given
    piece: Callable[[int], bytes]  # the bytes of a token
    vocab: int

    def start(self) -> "ThinkingFollower":
        """Return a follower at the start of the thoughts."""
        return ThinkingFollower(self)


class Phase(Enum):
    """Where an answer is."""

    THINKING = auto()
    FORCED = auto()  # the tokens around the end of the thoughts
    ANSWERING = auto()


class ThinkingFollower:
    """The state of one answer: its thoughts, then what follows them."""

    def __init__(self, rules: ThinkFirst) -> None:
        self._rules = rules
        self._then: Follower | None = None if rules.then is None else rules.then.start()
        self._phase = Phase.THINKING
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
        return self._phase is Phase.ANSWERING and self._then is not None and self._then.done

    def allowed(self, wait: float = 0.0) -> bytes | None:
        """Return the mask of allowed next tokens: inside the thoughts, all."""
        match self._phase:
            case Phase.THINKING:
                return self._inside
            case Phase.FORCED:
                token = self._forced[len(self._forced) - self._left]
                return only_bit(self._rules.vocab, token)
            case Phase.ANSWERING:
                return self._everything if self._then is None else self._then.allowed(wait)

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next: the end of the thoughts, or what `then` forces."""
        if self._phase is Phase.FORCED:
            return self._forced[len(self._forced) - self._left :]
        if self._phase is Phase.ANSWERING and self._then is not None:
            return self._then.forced()
        return ()

    def advance(self, token: int) -> None:
        """Advance by a token that was added to the answer."""
        match self._phase:
            case Phase.THINKING:
                self._think(token)
            case Phase.FORCED:
                self._left -= 1
                if not self._left:
                    self._phase = Phase.ANSWERING
            case Phase.ANSWERING:
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
        self._phase = Phase.FORCED if tokens else Phase.ANSWERING


def every_bit(vocab: int) -> bytes:
    """Return the mask in which every token is allowed, in whole words of 32 tokens."""
    return ((1 << vocab) - 1).to_bytes(-(-vocab // 32) * 4, "little")


def only_bit(vocab: int, token: int) -> bytes:
    """Return the mask in which one token is allowed."""
    return (1 << token).to_bytes(-(-vocab // 32) * 4, "little")


def without_bits(mask: bytes, tokens: frozenset[int]) -> bytes:
    """Return a mask without some tokens."""
    shown = bytearray(mask)
    for token in tokens:
        shown[token // 8] &= ~(1 << token % 8)
    return bytes(shown)
