"""Followers: a compiled constraint, and one answer's way through it.

Made by the compiler, driven by the engine through `request.Constraint`. Knows llguidance and token
ids, no fields of requests.
"""

from collections.abc import Sequence

from llguidance import LLMatcher

from jaxllama.errors import GenerationFailed


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
        if self._matcher.is_error():
            raise GenerationFailed(first_line(self._matcher.get_error()))


def first_line(text: str) -> str:
    """What llguidance says went wrong, without its state and the grammar it repeats."""
    lines = text.strip().splitlines() or [""]
    said = next((line for line in lines if line.strip().startswith("error:")), lines[0])
    return said.strip()[:300]
