"""The normalizer of SentencePiece: rewrites a text as the pieces of its vocabulary spell it.

Built by the readers of SentencePiece vocabularies, called by `Tokenizer` before the tokenizers
library, which has the same rules but applies them to whole graphemes. Knows strings only.
"""

import re
from collections.abc import Collection, Iterator

from jaxllama.text.charsmap import CharacterMap
from jaxllama.text.specials import any_of, compile_pattern
from jaxllama.text.vocabulary import SPACE

SPACES = re.compile(" +")


class SentencePieceNormalizer:
    """Applies character rules, reduces spaces, escapes them and adds one in front."""

    def __init__(
        self,
        rules: CharacterMap | None,
        kept: Collection[str],  # texts to which no rule applies
        *,
        adds_prefix: bool,
        removes_extra: bool,
        escapes: bool,
    ) -> None:
        self._rules = rules
        self._kept = frozenset(kept)
        self._adds_prefix = adds_prefix
        self._removes_extra = removes_extra
        self._space = SPACE if escapes else " "
        self._places: re.Pattern[str] | None = None  # None: text stays as it is
        if rules is not None or removes_extra:
            starts = r"(?!)" if rules is None else rules.pattern
            self._places = compile_pattern(f"(?P<kept>{any_of(self._kept)})|{starts}")

    def __call__(self, text: str) -> str:
        """Return the normalized text."""
        if not text:
            return ""
        chunks = self._chunks(text)
        body = "".join(reduced(chunks) if self._removes_extra else (chunk for chunk, _ in chunks))
        normal = (self._space if self._adds_prefix else "") + body.replace(" ", self._space)
        return normal.rstrip(self._space) if self._removes_extra else normal

    def _chunks(self, text: str) -> Iterator[tuple[str, bool]]:
        """Apply the character rules; yield the resulting text in chunks, each with True or False.

        True: the chunk is unchanged text. False: it is the replacement that a rule made, or a text
        to which no rule may apply.
        """
        done = at = 0
        while self._places is not None and (found := self._places.search(text, at)) is not None:
            at = found.start()
            length, chunk = self._rewritten(text, found)
            if length:
                if at > done:
                    yield text[done:at], True
                yield chunk, False
                done = at + length
            at += length or 1
        if done < len(text):
            yield text[done:], True

    def _rewritten(self, text: str, found: re.Match[str]) -> tuple[int, str]:
        """Return the number of characters to replace at the match `found`, and the replacement.

        The number is 0 if no rule applies there.
        """
        if found["kept"] is not None:
            return len(found["kept"]), found["kept"]
        rule = self._rules.rule_at(text, found.start()) if self._rules is not None else None
        return rule or (0, "")


def reduced(chunks: Iterator[tuple[str, bool]]) -> Iterator[str]:
    """Yield the chunks without spaces at the start of the text, and with single spaces elsewhere.

    Each chunk comes with True if it is unchanged text. A chunk with False keeps its inner spaces: a
    rule made it, or no rule may change it.
    """
    after_space = True
    for chunk, is_plain in chunks:
        part = chunk.lstrip(" ") if after_space else chunk
        part = SPACES.sub(" ", part) if is_plain else part
        if part:
            after_space = part.endswith(" ")
            yield part
