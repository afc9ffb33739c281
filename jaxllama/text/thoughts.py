"""Thoughts: what a model writes between `<think>` and `</think>` before it answers.

Used by the intake, which opens or closes the thoughts at the end of a prompt, and by the server,
one parser per answer. Knows text only. The result does not depend on how the text is split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from jaxllama.text.tools import overlap

THOUGHT_OPENER, THOUGHT_CLOSER = "<think>", "</think>"
OPENING = f"{THOUGHT_OPENER}\n"  # as models are trained to write them
CLOSING = f"\n{THOUGHT_CLOSER}\n\n"


class ThoughtStart(StrEnum):
    """The start of an answer's thoughts, as its prompt decides."""

    FREE = "free"  # nothing: the model may open them
    INSIDE = "inside"  # the prompt has opened them
    OVER = "over"  # the prompt has closed them


@dataclass(frozen=True)
class Thought:
    """A piece of the thoughts in an answer."""

    text: str


def thought_start(prompt: str) -> ThoughtStart:
    """Say whether a rendered prompt leaves the model's thoughts open, closed or not begun.

    Thoughts are text between `<think>` and `</think>`. Return INSIDE if the prompt ends with
    `<think>`, OVER if with `</think>`, else FREE. White space at the end does not count.
    """
    end = prompt.rstrip()
    if end.endswith(THOUGHT_OPENER):
        return ThoughtStart.INSIDE
    return ThoughtStart.OVER if end.endswith(THOUGHT_CLOSER) else ThoughtStart.FREE


def start_in(message: str) -> ThoughtStart:
    """Return INSIDE if the last `<think>` of a message is not closed, else OVER.

    The message is one that the model continues.
    """
    is_open = message.rfind(THOUGHT_OPENER) > message.rfind(THOUGHT_CLOSER)
    return ThoughtStart.INSIDE if is_open else ThoughtStart.OVER


def without_thoughts(prompt: str) -> str:
    """Return the prompt with a closed `<think>` block at its end: the model answers at once."""
    match thought_start(prompt):
        case ThoughtStart.OVER:
            return prompt
        case ThoughtStart.INSIDE:
            return prompt.rstrip() + "\n" + CLOSING
        case ThoughtStart.FREE:
            return prompt + OPENING + CLOSING


class ThoughtParser:
    """Splits one answer into thoughts and the text after them."""

    def __init__(self, start: ThoughtStart) -> None:
        self._held = ""  # text not emitted yet
        self._is_first = True  # no thought was emitted yet
        self._pieces: list[Thought | str] = []
        states: dict[ThoughtStart, Callable[[], bool]] = {
            ThoughtStart.FREE: self._read_start,
            ThoughtStart.INSIDE: self._read_thoughts,
            ThoughtStart.OVER: self._read_text,
        }
        self._state = states[start]

    @property
    def is_inside(self) -> bool:
        """Say whether the thoughts have begun and not ended."""
        return self._state == self._read_thoughts

    def push(self, text: str) -> list[Thought | str]:
        """Add text; return the pieces of thoughts and text that are certain now."""
        self._held += text
        while self._held and self._state():
            pass
        return self._take_pieces()

    def flush(self) -> list[Thought | str]:
        """End the answer; return the pieces that are left."""
        if self._state == self._read_thoughts:
            self._emit_thought(self._held.rstrip())
        elif self._state != self._read_gap and self._held:
            self._pieces.append(self._held)
        self._held = ""
        return self._take_pieces()

    # States: each consumes text from `_held` and returns True if parsing can continue.

    def _read_start(self) -> bool:
        """Look for `<think>` at the start of the answer.

        Returns False if more text has to arrive to decide.
        """
        rest = self._held.lstrip()
        if rest.startswith(THOUGHT_OPENER):
            self._held, self._state = rest[len(THOUGHT_OPENER) :], self._read_thoughts
            return True
        if THOUGHT_OPENER.startswith(rest):
            return False
        self._state = self._read_text
        return True

    def _read_thoughts(self) -> bool:
        """Emit the thoughts up to `</think>`, without white space around them.

        Return True if `</think>` was found, False if more text must arrive.
        """
        if self._is_first:
            self._held = self._held.lstrip()
        before, closer, after = self._held.partition(THOUGHT_CLOSER)
        if closer:
            self._emit_thought(before.rstrip())
            self._held, self._state = after, self._read_gap
            return True
        sure = len(self._held[: len(self._held) - overlap(self._held, THOUGHT_CLOSER)].rstrip())
        self._emit_thought(self._held[:sure])
        self._held = self._held[sure:]
        return False

    def _read_gap(self) -> bool:
        """Drop the white space between thoughts and answer; return False if more may come."""
        self._held = self._held.lstrip()
        if self._held:
            self._state = self._read_text
        return bool(self._held)

    def _read_text(self) -> bool:
        """Emit all text as the answer, since the thoughts are over; return False: none is left."""
        self._pieces.append(self._held)
        self._held = ""
        return False

    def _emit_thought(self, text: str) -> None:
        if text:
            self._pieces.append(Thought(text))
            self._is_first = False

    def _take_pieces(self) -> list[Thought | str]:
        pieces, self._pieces = self._pieces, []
        return pieces
