"""The tail: token ids in, text that is safe to show out.

The engine drives one per request through `request.TextTail`. Knows token bytes and stop strings;
must not know requests or models.

Held back are the first bytes of a character that is not complete, and the longest end of the text
that could begin a stop string. What was shown is never taken back. All that is pushed, then
flushed, joins to the decoded text cut before the stop string that is completed first; of several
completed by the same character, the longest counts. So the result does not depend on how the text
falls into tokens.
"""

import codecs

from jaxllama.text.tokenizer import Tokenizer


class Tail:
    """Turns the token ids of one generation into text as they come."""

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), *, start: bool = True
    ) -> None:
        """`start` as in `Tokenizer.decode`: False if the text goes on after other text."""
        self._tokenizer = tokenizer
        self._start = start
        self._stops = tuple(filter(None, stop))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = start and tokenizer.drops_space
        self._held = ""
        self._stopped: str | None = None

    def again(self) -> "Tail":
        """A new one for another answer to the same prompt."""
        return Tail(self._tokenizer, self._stops, start=self._start)

    @property
    def stopped(self) -> str | None:
        """The stop string that was met, if one was."""
        return self._stopped

    def push(self, token: int) -> str:
        """Text that became safe to show with this token; nothing once a stop string was met."""
        if self._stopped is not None:
            return ""
        raw = self._tokenizer.piece(token)
        if raw and self._drops_space:
            raw = raw.removeprefix(b" ")
            self._drops_space = False
        return self._show(self._decoder.decode(raw))

    def flush(self) -> str:
        """Whatever was still held back, now that the generation is over."""
        if self._stopped is not None:
            return ""
        shown = self._show(self._decoder.decode(b"", final=True))
        shown, self._held = shown + self._held, ""
        self._decoder.reset()
        return shown

    def _show(self, text: str) -> str:
        """Take new text in, give out what no stop string can reach any more."""
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
    """Where the stop string that is completed first begins, and which it is."""
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        return None
    return min(found, key=lambda met: (met[0] + len(met[1]), met[0]))


def longest_head(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that could begin a stop string."""
    longest = max(map(len, stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if text.endswith(tuple(stop[:length] for stop in stops if len(stop) > length)):
            return length
    return 0
