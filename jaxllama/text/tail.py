"""The tail: converts token ids to text that is safe to show, while they arrive.

The engine drives one per request through `request.TextTail`. Knows token bytes and stop strings;
must not know requests or models.

The tail keeps back the first bytes of an incomplete character, and the longest end of the text that
could start a stop string. Text that was returned is never taken back. All texts that `push` and
`flush` return, joined, are the decoded text, cut before the stop string that is completed first; if
one character completes several stop strings, the longest counts. So the result does not depend on
how the text is split into tokens.
"""

import codecs

from jaxllama.text.tokenizer import Tokenizer


class Tail:
    """Converts the token ids of one generation to text while they arrive."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), *, start: bool = True
    ) -> None:
        """Prepare to decode one answer, which ends before the first of the `stop` strings.

        `start` is False if the answer continues another text: then a SentencePiece vocabulary's
        leading space is kept.
        """
        self._tokenizer = tokenizer
        self._start = start
        self._stops = tuple(filter(None, stop))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = start and tokenizer.drops_space
        self._held = ""
        self._stopped: str | None = None

    def again(self) -> "Tail":
        """Return a new decoder of tokens with the same settings, for another answer."""
        return Tail(self._tokenizer, self._stops, start=self._start)

    @property
    def stopped(self) -> str | None:
        """Return the stop string that has ended the text; None if none has."""
        return self._stopped

    def push(self, token: int) -> str:
        """Add a token and return the text that became safe to show; "" after a stop string."""
        if self._stopped is not None:
            return ""
        raw = self._tokenizer.piece(token)
        if raw and self._drops_space:
            raw = raw.removeprefix(b" ")
            self._drops_space = False
        return self._show(self._decoder.decode(raw))

    def flush(self) -> str:
        """End the text and return the rest of it that was kept back."""
        if self._stopped is not None:
            return ""
        shown = self._show(self._decoder.decode(b"", final=True))
        shown, self._held = shown + self._held, ""
        self._decoder.reset()
        return shown

    def _show(self, text: str) -> str:
        """Add decoded text; return the text that cannot become part of a stop string any more."""
        self._held += text
        met = first_stop(self._held, self._stops)
        if met is not None:
            place, self._stopped = met
            shown, self._held = self._held[:place], ""
            return shown
        safe = len(self._held) - longest_head(self._held, self._stops)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Return position and text of the stop string that ends first in `text`; None if it has none.

    Of several that end at the same character, it is the longest.
    """
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        return None
    return min(found, key=lambda met: (met[0] + len(met[1]), met[0]))


def longest_head(text: str, stops: tuple[str, ...]) -> int:
    """Return the length of the longest suffix of `text` with which a stop string begins.

    A whole stop string does not count.
    """
    longest = max(map(len, stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if text.endswith(tuple(stop[:length] for stop in stops if len(stop) > length)):
            return length
    return 0
