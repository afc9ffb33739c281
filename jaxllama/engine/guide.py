"""Guide: where one answer is within its request's constraint, and what must come next.

Held by a generation, driven by the engine through `guides.py`. Knows token ids and words of 32
tokens; must not know text or what the constraint is made of.
"""

from collections import deque

import numpy as np

from jaxllama.request import Constraint


class Guide:
    """One answer's way through its constraint."""

    def __init__(self, constraint: Constraint) -> None:
        self._follower = constraint.start()
        self.due: deque[int] = deque()  # tokens that come next whatever the model thinks
        self._look_ahead()

    @property
    def is_done(self) -> bool:
        """The answer is whole; nothing can follow."""
        return not self.due and self._follower.done

    def advance(self, token: int) -> None:
        """A token was added to the answer."""
        if self.due and self.due.popleft() != token:
            raise ValueError(f"token {token} is not the one that had to come")
        self._follower.advance(token)
        self._look_ahead()

    def allow(self, row: np.ndarray) -> bool:
        """Set the bits of the tokens that may come next in a row of `Rows.allowed`, and no others.

        Returns False, with no bit set, while the constraint still computes them.
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
        """Wait so long at most until the constraint has computed what may come next."""
        self._follower.allowed(seconds)

    def _look_ahead(self) -> None:
        if not self.due and not self._follower.done:
            self.due.extend(self._follower.forced())
