"""Guide: the position of one answer in its request's constraint, and the tokens allowed next.

Held by a generation, driven by the engine through `guides.py`. Knows token ids and mask words of 32
tokens; must not know text or the kind of constraint.
"""

import itertools
from collections import deque
from collections.abc import Sequence

import numpy as np

from jaxllama.request import TokenConstraint


class Guide:
    """Follows one answer through its constraint."""

    def __init__(
        self, constraint: TokenConstraint, places: int = 1, *, is_drawn: bool = False
    ) -> None:
        """Begin to follow one answer through `constraint`, before its first token.

        A decode step computes at most `places` tokens of the answer. `is_drawn` says whether forced
        tokens, the only ones that the constraint allows, still have to be drawn by the samplers.
        """
        self._follower = constraint.start()
        self.is_drawn = is_drawn
        self._places = places
        # Forced tokens: the constraint allows nothing else. The follower is past them already.
        self.due: deque[int] = deque()
        self._is_free = False  # no token is forced where the follower is
        self._look_ahead()

    @property
    def is_done(self) -> bool:
        """Say whether the answer is complete under its constraint, so that no token can follow."""
        return not self.due and self._follower.done

    @property
    def is_ending(self) -> bool:
        """Say whether the answer is complete after the forced tokens that come next.

        A forced token is the only one that the constraint allows.
        """
        return self._follower.done

    def advance(self, token: int) -> None:
        """Advance by one token of the answer; raise ValueError if another token was forced."""
        if self.due:
            if self.due.popleft() != token:
                raise ValueError(f"token {token} is not the one that had to come")
        else:
            self._follower.advance(token)
            self._is_free = False
        self._look_ahead()

    def allow(self, row: np.ndarray, most: int = 0) -> Sequence[int] | None:
        """Return up to `most` forced tokens that come next; write the mask after them into `row`.

        A forced token is the only one that the constraint allows. The mask has a bit per token of
        the vocabulary: the tokens that may follow the returned ones. `most` is less than the number
        of tokens that a step computes. Returns None, and sets no bit, if nothing is forced and the
        constraint still computes the mask. Raises ValueError if no token is allowed.
        """
        row[:] = 0
        forced = list(itertools.islice(self.due, most))
        if len(forced) == len(self.due):
            mask = None if self._follower.done else self._follower.allowed()
            if mask is not None:
                words = np.frombuffer(mask, np.uint32)
                row[: len(words)] = words[: len(row)]
                if not row.any():
                    raise ValueError("no token is allowed")
                return forced
            if not forced:
                return None
            forced.pop()  # it takes the place of the unknown mask
        token = self.due[len(forced)]
        row[token // 32] = 1 << token % 32
        return forced

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds` for the constraint to compute the next mask."""
        self._follower.allowed(seconds)

    def _look_ahead(self) -> None:
        """Find the forced tokens that come next: all of them, or as many as a step has places.

        A forced token is the only one that the constraint allows.
        """
        while len(self.due) < self._places and not (self._is_free or self._follower.done):
            forced = self._follower.forced()
            self._is_free = not forced
            for token in forced:
                self._follower.advance(token)
            self.due.extend(forced)
