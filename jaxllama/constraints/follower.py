"""Followers: a compiled constraint, and one answer's way through it.

Made by the compiler, driven by the engine through `request.Constraint`. Knows llguidance and token
ids, no fields of requests.
"""

import re
from collections.abc import Sequence

from llguidance import LLMatcher

from jaxllama.errors import ConstraintTooCostly, GenerationFailed

# What llguidance says where its limits are passed, and where no text can satisfy a grammar.
OVER_LIMIT = re.compile(
    r"too many items|current row has|fuel|lexer states|too many (lexer )?states", re.IGNORECASE
)
UNSATISFIABLE = "NoExtensionBias"


class Compiled:
    """A constraint that any number of answers can follow."""

    def __init__(self, matcher: LLMatcher, hidden: Sequence[int] = ()) -> None:
        """`hidden` tokens are never allowed: end tokens where a request ignores them."""
        self._matcher, self._hidden = matcher, tuple(hidden)

    def start(self) -> "Following":
        """A follower at the beginning of an answer."""
        return Following(self._matcher.deep_copy(), self._hidden)

    def hiding(self, tokens: Sequence[int]) -> "Compiled":
        """The same, for requests in which these tokens do not end an answer."""
        return Compiled(self._matcher, tokens)


class Following:
    """One answer on its way."""

    def __init__(self, matcher: LLMatcher, hidden: Sequence[int]) -> None:
        self._matcher, self._hidden = matcher, hidden

    @property
    def done(self) -> bool:
        """The answer is whole, and no token can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> bytes:
        """A bit per token: what may come next."""
        bits = self._matcher.compute_bitmask()
        self._check()
        if not self._hidden:
            return bits
        shown = bytearray(bits)
        for token in self._hidden:
            shown[token // 8] &= ~(1 << token % 8)
        return bytes(shown)

    def forced(self) -> Sequence[int]:
        """Tokens that come next whatever the model thinks."""
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    def advance(self, token: int) -> None:
        """A token was added to the answer."""
        self._matcher.consume_token(token)
        self._check()

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
    """Whether llguidance stopped because a grammar passed one of its limits."""
    return OVER_LIMIT.search(said) is not None


def plain(said: str) -> str:
    """Word an error of llguidance for the author of a grammar or schema."""
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
    """What llguidance says went wrong, without its state and the grammar it repeats."""
    lines = text.strip().splitlines() or [""]
    said = next((line for line in lines if line.strip().startswith("error:")), lines[0])
    return said.strip()[:300]
