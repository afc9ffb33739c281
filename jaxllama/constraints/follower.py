"""Followers: a compiled constraint, and its state in one answer.

Made by the compiler, driven by the engine through `request.TokenConstraint`. Knows llguidance and
token ids, no fields of requests.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager

from llguidance import LLMatcher

from jaxllama.constraints.masks import without_bits
from jaxllama.errors import ConstraintTooCostly, GenerationFailed

# Errors of llguidance: a limit is exceeded; no text can satisfy the grammar.
OVER_LIMIT = re.compile(
    r"too many items|current row has|fuel|lexer states|too many (lexer )?states", re.IGNORECASE
)
UNSATISFIABLE = "NoExtensionBias"


QUICK_SECONDS = 0.002  # after a slower mask, a thread computes all further masks of the answer
GRACE_SECONDS = 1.0  # of processor time that the constraint of one answer may take, ...
SECONDS_PER_TOKEN = 0.01  # ... and further seconds for each token

Clock = Callable[[], float]


class CompiledConstraint:
    """A compiled constraint, which any number of answers can follow."""

    def __init__(self, matcher: LLMatcher, slow: Executor, hidden: Sequence[int] = ()) -> None:
        """Keep the compiled grammar `matcher`; tokens in `hidden` are never allowed.

        `slow` is the thread that computes token masks for answers whose masks take long. `hidden`
        holds the end tokens if the request ignores end tokens.
        """
        self._matcher, self._slow, self._hidden = matcher, slow, tuple(hidden)

    def start(self) -> "AnswerFollower":
        """Return the state of the constraint at the start of a new answer."""
        return AnswerFollower(self._matcher.deep_copy(), self._slow, self._hidden)

    def hiding(self, tokens: Sequence[int]) -> "CompiledConstraint":
        """Return a copy that never allows `tokens`, the end tokens that a request ignores."""
        return CompiledConstraint(self._matcher, self._slow, tokens)


class AnswerFollower:
    """The state of a constraint in one answer."""

    def __init__(
        self,
        matcher: LLMatcher,
        slow: Executor,
        hidden: Sequence[int] = (),
        *,
        clock: Clock = time.thread_time,
    ) -> None:
        """Start at the first token of an answer, which the compiled grammar `matcher` constrains.

        Tokens in `hidden` are never allowed. `slow` is the thread for masks that take long; `clock`
        returns the processor seconds of the calling thread.
        """
        self._matcher, self._slow, self._hidden = matcher, slow, hidden
        self._clock = clock
        self._mask: Future[bytes] | None = None  # of the next token
        self._is_quick = True
        self._tokens = 0
        self._spent = 0.0  # seconds of processor time
        # Whether the answer is complete, so that no token can follow. Kept here because nobody else
        # may look at the matcher while the thread computes a mask with it.
        self.done = self._is_complete()

    def allowed(self, wait: float = 0.0) -> bytes | None:
        """Return the mask of allowed next tokens, one bit each; None if it is not ready in time.

        Once a mask of this answer has taken longer than QUICK_SECONDS, another thread computes all
        further masks, and this method waits at most `wait` seconds for that thread.
        """
        if self._mask is None:
            if self._is_quick:
                return self._timed_mask()
            self._mask = self._slow.submit(self._timed_mask)
        try:
            return self._mask.result(wait)
        except TimeoutError:
            return None

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next, because no others are allowed; may be empty."""
        with self._timed():
            tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    def advance(self, token: int) -> None:
        """Advance by a token that was added to the answer.

        Raises ConstraintTooCostly once the constraint has taken more processor time than allowed.
        """
        self._mask = None
        self._tokens += 1
        with self._timed():
            self._matcher.consume_token(token)
        self._check()
        self.done = self._is_complete()
        most = GRACE_SECONDS + SECONDS_PER_TOKEN * self._tokens
        if self._spent > most:
            raise ConstraintTooCostly(
                f"the constraint of this request has taken {self._spent:.2f} s of processor time "
                f"for {self._tokens} tokens; at most {most:.2f} s are allowed: use a grammar that "
                f"can be read in fewer ways"
            )

    def _is_complete(self) -> bool:
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def _timed_mask(self) -> bytes:
        before = self._spent
        with self._timed():
            bits = self._matcher.compute_bitmask()
        self._is_quick &= self._spent - before <= QUICK_SECONDS
        self._check()
        return without_bits(bits, self._hidden) if self._hidden else bits

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the processor time of a `with` block to the total of the answer."""
        began = self._clock()
        try:
            yield
        finally:
            self._spent += self._clock() - began

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        said = self._matcher.get_error()
        if is_over_limit(said):
            raise ConstraintTooCostly(
                f"the constraint of this request cannot be followed any further: {plain(said)}"
            )
        raise GenerationFailed(plain(said))


def is_over_limit(said: str) -> bool:
    """Say whether llguidance's error `said` means that a grammar exceeded one of its limits."""
    return OVER_LIMIT.search(said) is not None


def plain(said: str) -> str:
    """Reword llguidance's error `said` for the author of a grammar or schema."""
    line = first_line(said)
    if UNSATISFIABLE in said:
        return (
            "no text can satisfy it, because it refers to itself without an end; give the "
            "self-reference an alternative, or make the property that holds it optional"
        )
    if is_over_limit(said):
        return (
            "it leaves too many possibilities open at one place, or a required part of it refers "
            "back to itself; use fewer alternatives or optional properties, and rules that can be "
            f"read in one way only ({line})"
        )
    return line


def first_line(text: str) -> str:
    """Return the line of an llguidance error that states the problem, at most 300 characters."""
    lines = text.strip().splitlines() or [""]
    said = next((line for line in lines if line.strip().startswith("error:")), lines[0])
    return said.strip()[:300]
