"""Guide: where one answer is within its request's constraint, and what must come next.

Held by a generation, driven by the engine. Knows token ids and words of 32 tokens; what the
constraint is made of, and text, it does not know.
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

    def allow(self, row: np.ndarray) -> None:
        """Leave those bits of a row of `Rows.allowed` set that may come next."""
        if self.due:
            row[:] = 0
            row[self.due[0] // 32] = 1 << self.due[0] % 32
            return
        words = np.frombuffer(self._follower.allowed(), np.uint32)
        row[:] = 0
        row[: len(words)] = words[: len(row)]
        if not row.any():
            raise ValueError("no token is allowed")

    def _look_ahead(self) -> None:
        if not self.due and not self._follower.done:
            self.due.extend(self._follower.forced())
