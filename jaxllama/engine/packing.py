"""Packing: spans of several prompts, as the arrays of one call of the program `prefill_packed`.

Used by `prompts.py`. A tile of the kernels is cut into spans of equal size. A prompt takes as many
spans as it needs, one after the other; the last one is padded. Plain Python: no device.
"""

from collections.abc import Sequence

import numpy as np


class PackedChunk:
    """Spans of several prompts that one prefill call computes together."""

    def __init__(self, spans: int, rows: int) -> None:
        """Make a chunk without tokens, with room for `spans` spans of `rows` tokens each."""
        self._rows = rows
        self._used = 0  # spans
        self._ids = np.zeros((spans, rows), np.int32)
        self._places = np.zeros((3, spans), np.int32)  # slot, first column, number of tokens

    def add(self, slot: int, ids: Sequence[int], start: int) -> None:
        """Add the tokens ids[start:] of one prompt; there must be room for them.

        They go to the cache of `slot`, the first one to column `start`.
        """
        for at in range(start, len(ids), self._rows):
            taken = ids[at : at + self._rows]
            self._ids[self._used, : len(taken)] = taken
            self._places[:, self._used] = slot, at, len(taken)
            self._used += 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids [tokens] and the places [3, spans] that the program takes.

        Spans without tokens lie after the last prompt, because some kernels write padding to the
        cache.
        """
        places = self._places.copy()
        slot, start, count = places[:, self._used - 1]
        places[:, self._used :] = [[slot], [start + count], [0]]
        return self._ids.reshape(-1), places
