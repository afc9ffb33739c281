"""Spelling of tokens as RLLaMA has it, and the lines of whole distributions.

The spelling is SentencePiece's: `▁` for a space, `<0x0A>` for a line break and for bytes that are
no character alone. Called off the event loop; knows numbers and tokens, no HTTP.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from jaxllama.serve.wire import encode
from jaxllama.text.tokenizer import Tokenizer

BYTE = re.compile(r"[\udc80-\udcff\n]")  # a byte that is no UTF-8, or a line break


def spell(piece: bytes) -> str:
    """Return a token's bytes as text, with ▁ for a space.

    A line break, and a byte that is not part of valid UTF-8, is written in hex, such as `<0x0A>`.
    """
    text = piece.decode("utf-8", "surrogateescape").replace(" ", "\u2581")
    return BYTE.sub(lambda found: f"<0x{ord(found[0]) & 0xFF:02X}>", text)


class DistributionWriter:
    """Writes distributions over all tokens as lines of JSON, with sorted keys."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        """Prepare the keys of the JSON objects: the texts of the token ids below `count`.

        Tokens with the same text share a key, whose value is the sum of their probabilities.
        """
        ids: dict[str, list[int]] = {}
        for id_ in range(count):
            ids.setdefault(spell(tokenizer.piece(id_, special=True)), []).append(id_)
        self._keys = sorted(ids)
        self._order = np.concatenate([ids[key] for key in self._keys])
        self._starts = np.cumsum([0, *(len(ids[key]) for key in self._keys[:-1])])
        self._heads = [encode(key) + b':{"p":' for key in self._keys]
        ends = {spell(tokenizer.piece(id_, special=True)) for id_ in tokenizer.end_ids}
        self._tails = [b',"is_end_token":true}' if key in ends else b"}" for key in self._keys]

    def lines(self, logits: np.ndarray) -> Iterator[bytes]:
        """Yield a line of JSON for each row of logits: {text: {"p": probability}}, all tokens."""
        for row in logits:
            shares = np.exp(row - row.max(), dtype=np.float64)
            shares /= shares.sum()
            values = np.add.reduceat(shares[self._order], self._starts).tolist()
            yield self._line(values)

    def _line(self, values: Sequence[float]) -> bytes:
        parts = zip(self._heads, values, self._tails, strict=True)
        return b"{%s}" % b",".join(b"%s%.9g%s" % part for part in parts)
