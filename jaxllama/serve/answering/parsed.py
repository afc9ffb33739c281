"""Parsed answers: the text of an answer and the tool calls in it, while it arrives.

Used by dialects whose answers may be tool calls. Knows no dialect's JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxllama.formats import CallStyle
from jaxllama.request import Event, Finished, FinishReason
from jaxllama.text.tools import CallDelta, Piece, ToolParser


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
        """Return the arguments as an object; {} if they are none, as in an answer cut short."""
        try:
            found = json.loads(self.arguments)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class ParsedAnswer:
    """One answer, parsed piece by piece; with `style`, tool calls are found in it."""

    def __init__(self, style: CallStyle | None, *, only_one: bool = False) -> None:
        """Make an empty answer; `only_one` drops every call after the first."""
        self.calls: list[ParsedCall] = []
        self.end: Finished | None = None
        self._texts: list[str] = []
        self._parser = None if style is None else ToolParser(style)
        self._only_one = only_one

    @property
    def text(self) -> str:
        """The text so far, without calls."""
        return "".join(self._texts)

    @property
    def has_called(self) -> bool:
        """Whether the answer is over and ended with calls."""
        is_cut = self.end is not None and self.end.reason is FinishReason.LENGTH
        return bool(self.calls) and not is_cut

    def receive(self, event: Event) -> Sequence[Piece]:
        """Add an event to the answer and return the pieces of text and calls in it."""
        pieces: Sequence[Piece] = [event.text] if event.text else []
        if self._parser is not None:
            pieces = self._parser.push(event.text)
        if isinstance(event, Finished):
            self.end = event
            if self._parser is not None:
                pieces = [*pieces, *self._parser.flush()]
        kept = [piece for piece in pieces if isinstance(piece, str) or self._is_kept(piece)]
        for piece in kept:
            if isinstance(piece, str):
                self._texts.append(piece)
            elif piece.name is not None:
                self.calls.append(ParsedCall(piece.name, [piece.arguments]))
            else:
                self.calls[piece.index].pieces.append(piece.arguments)
        return kept

    def _is_kept(self, piece: CallDelta) -> bool:
        return not (self._only_one and piece.index)
