"""Guide: the position of one answer in its request's constraint, and the tokens allowed next.

Held by a generation, driven by the engine through `guides.py`. Knows token ids and mask words of 32
tokens; must not know text or the kind of constraint.
"""

from collections import deque

import numpy as np

from jaxllama.request import TokenConstraint


class Guide:
    """Follows one answer through its constraint."""

    def __init__(self, constraint: TokenConstraint) -> None:
        self._follower = constraint.start()
        self.due: deque[int] = deque()  # forced tokens: the constraint allows nothing else
        self._look_ahead()

    @property
    def is_done(self) -> bool:
        """Say whether the answer is complete under its constraint, so that no token can follow."""
        return not self.due and self._follower.done

    def advance(self, token: int) -> None:
        """Advance by one token of the answer; raise ValueError if another token was forced."""
        if self.due and self.due.popleft() != token:
            raise ValueError(f"token {token} is not the one that had to come")
        self._follower.advance(token)
        self._look_ahead()

    def allow(self, row: np.ndarray) -> bool:
        """Write the mask of the tokens allowed next into a row of `Rows.allowed`.

        Returns False, with no bit set, while the constraint still computes the mask. Raises
        ValueError if no token is allowed.
        """
        row[:] = 0
        if self.due:
            row[self.due[0] // 32] = 1 << self.due[0] % 32
            return True
        mask = self._follower.allowed()
        if mask is None:
            return False
        words = np.frombuffer(mask, np.uint32)
        row[: len(words)] = words[: len(row)]
        if not row.any():
            raise ValueError("no token is allowed")
        return True

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds` for the constraint to compute the next mask."""
        self._follower.allowed(seconds)

    def _look_ahead(self) -> None:
        if not self.due and not self._follower.done:
            self.due.extend(self._follower.forced())
