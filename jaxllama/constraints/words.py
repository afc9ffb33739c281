"""TokenBytes: a model's vocabulary in the form llguidance needs, here and in the worker process.

Built from a tokenizer by the compiler. Knows bytes and ids; no grammar, no request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llguidance import LLParserLimits, LLTokenizer

Encode = Callable[[str], list[int]]

LONGEST = 64  # bytes of the longest token that `cut` uses


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of every token, the ids of special tokens, and the ids of end tokens."""

    tokens: Sequence[bytes]
    specials: Sequence[int]
    ends: Sequence[int]

    def as_json(self) -> dict[str, Any]:
        """Convert to values that JSON can hold, to send the vocabulary through a pipe."""
        tokens = [token.hex() for token in self.tokens]
        return {"tokens": tokens, "specials": list(self.specials), "ends": list(self.ends)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuild the vocabulary from what `as_json` returned."""
        tokens = [bytes.fromhex(token) for token in fields["tokens"]]
        return cls(tokens, fields["specials"], fields["ends"])

    def tokenizer(self, encode: Encode | None = None) -> LLTokenizer:
        """Build llguidance's tokenizer for this vocabulary.

        `encode` tokenizes text as the model's own tokenizer does; None: text is split into the
        longest tokens that fit.
        """
        return LLTokenizer(
            TokenizerAdapter(self, encode),  # type: ignore[arg-type]
            n_vocab=len(self.tokens),
            eos_token=list(self.ends),
        )


class TokenizerAdapter:
    """The interface that llguidance requires of a tokenizer."""

    def __init__(self, words: TokenBytes, encode: Encode | None) -> None:
        self.eos_token_id = words.ends[0]
        self.bos_token_id = None
        self.tokens = words.tokens
        self.special_token_ids = words.specials
        self.is_tokenizer_wrapper = True
        self._encode = encode
        special = frozenset(words.specials)
        self._ids = {
            token: id_ for id_, token in enumerate(words.tokens) if token and id_ not in special
        }

    def __call__(self, text: str) -> list[int]:
        """Return token ids whose bytes are exactly `text`."""
        raw = text.encode()
        ids = self._encode(text) if self._encode is not None else []
        if b"".join(self.tokens[id_] for id_ in ids) == raw:
            return ids
        return cut(raw, self._ids)


def cut(raw: bytes, ids: Mapping[bytes, int]) -> list[int]:
    """Return token ids for the bytes `raw`, always taking the longest token that fits.

    `ids` maps the bytes of a token to its id. Bytes that no token covers are skipped.
    """
    found, at = [], 0
    while at < len(raw):
        lengths = range(min(LONGEST, len(raw) - at), 0, -1)
        length = next((n for n in lengths if raw[at : at + n] in ids), 0)
        if length:
            found.append(ids[raw[at : at + length]])
        at += max(length, 1)
    return found


def limits() -> LLParserLimits:
    """Return llguidance's limits on the cost of one grammar and of one step.

    A mask of an ambiguous grammar takes 25 ms at 10,000 parser items, the limit, and 0.5 to 2 s at
    50,000. Schemas of 300 optional properties, choices of 256 texts and expression grammars need
    fewer than 2,000 items.
    """
    return LLParserLimits(
        step_lexer_fuel=100_000,  # some 7 ms
        step_max_items=10_000,
        max_lexer_states=10_000,  # some 20 MB
        max_grammar_size=50_000,
        verbose_errors=False,
    )
