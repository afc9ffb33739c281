"""Parsed answers: the thoughts, the text and the tool calls of an answer, while it arrives.

Used by dialects whose answers may have thoughts or be tool calls. Knows no dialect's JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxllama.formats import CallStyle
from jaxllama.request import Event, Finished, FinishReason
from jaxllama.text.thoughts import Thought, ThoughtParser
from jaxllama.text.tools import CallDelta, Piece, ToolParser

AnswerPiece = Thought | Piece


@dataclass
class ParsedCall:
    """A tool call, with its arguments as JSON text."""

    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The JSON text of the arguments so far."""
        return "".join(self.pieces)

    def as_object(self) -> dict[str, Any]:
        """Return the arguments as a dict; {} if the JSON was cut short or is no object."""
        try:
            found = json.loads(self.arguments)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class ParsedAnswer:
    """One answer, parsed piece by piece; with `style`, tool calls are found in it."""

    def __init__(
        self,
        style: CallStyle | None,
        *,
        only_one: bool = False,
        thoughts: ThoughtParser | None = None,
    ) -> None:
        """Make an empty answer.

        `style` is the syntax of tool calls; with None, calls stay text. `only_one` drops every call
        after the first; `thoughts` splits off the thoughts, None if the answer has none.
        """
        self.calls: list[ParsedCall] = []
        self.end: Finished | None = None
        self.thought_tokens = 0
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._thought_parser = thoughts
        self._parser = None if style is None else ToolParser(style)
        self._only_one = only_one

    @property
    def text(self) -> str:
        """The text of the answer so far, without thoughts and tool calls."""
        return "".join(self._texts)

    @property
    def thoughts(self) -> str:
        """The text of the thoughts so far."""
        return "".join(self._thoughts)

    @property
    def has_called(self) -> bool:
        """Whether the answer has tool calls and was not cut at its token limit."""
        is_cut = self.end is not None and self.end.reason is FinishReason.LENGTH
        return bool(self.calls) and not is_cut

    def receive(self, event: Event) -> Sequence[AnswerPiece]:
        """Add an event; return the new pieces of thoughts, text and tool calls, in their order."""
        pieces: list[AnswerPiece] = []
        for part in self._split(event):
            if isinstance(part, Thought) or self._parser is None:
                pieces.append(part)
            else:
                pieces += self._parser.push(part)
        if isinstance(event, Finished):
            self.end = event
            if self._parser is not None:
                pieces += self._parser.flush()
        kept = [
            piece for piece in pieces if not isinstance(piece, CallDelta) or self._is_kept(piece)
        ]
        for piece in kept:
            if isinstance(piece, Thought):
                self._thoughts.append(piece.text)
            elif isinstance(piece, str):
                self._texts.append(piece)
            elif piece.name is not None:
                self.calls.append(ParsedCall(piece.name, [piece.arguments]))
            else:
                self.calls[piece.index].pieces.append(piece.arguments)
        return kept

    def _split(self, event: Event) -> Sequence[Thought | str]:
        """Split the text of an event into thoughts and other text; count the thoughts' tokens."""
        parser = self._thought_parser
        if parser is None:
            return [event.text] if event.text else []
        was_inside = parser.is_inside
        parts = parser.push(event.text)
        if isinstance(event, Finished):
            parts += parser.flush()
        elif was_inside or parser.is_inside:
            self.thought_tokens += 1
        return parts

    def _is_kept(self, piece: CallDelta) -> bool:
        return not (self._only_one and piece.index)
