"""Text forms: an `AnswerForm` of answers that are texts, of which a dialect says only the JSON.

Used by dialects without tools or log-probabilities.
"""

from collections.abc import Iterable
from typing import Any

from jaxllama.request import Event, Finished, FinishReason, Token, Usage
from jaxllama.service.answers import Answers


class TextForm:
    """The form of a response of plain texts: collects them, and makes the chunks of a stream.

    A subclass defines the chunks and the whole response, as an API wants them.
    """

    says_done = False

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        count = len(answers.requests)
        self.texts: list[list[str]] = [[] for _ in range(count)]
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.ends: list[Finished | None] = [None] * count

    # For subclasses.

    def begin(self) -> Iterable[Any]:
        """Return the chunks with which the stream begins, before any text is there."""
        return ()

    def piece(self, index: int, text: str) -> Any:
        """Return the stream's chunk for a piece of the text of answer `index`."""
        raise NotImplementedError

    def last(self, index: int) -> Any:
        """Return the stream's chunk for the end of answer `index`; None sends no chunk."""
        del index

    def end(self) -> Iterable[Any]:
        """Return the stream's chunks after the last event."""
        return ()

    def whole(self) -> Any:
        """Return the body of a response that is not streamed."""
        raise NotImplementedError

    # For `write_answer`.

    def take(self, index: int, event: Event) -> Iterable[Any]:
        """Collect an event of answer `index`, and yield the chunks that a stream sends for it."""
        if isinstance(event, Token):
            self.tokens[index].append(event.token)
        if event.text:
            self.texts[index].append(event.text)
            yield self.piece(index, event.text)
        if isinstance(event, Finished):
            self.ends[index] = event
            last = self.last(index)
            if last is not None:
                yield last

    # What subclasses read.

    @property
    def text(self) -> str:
        """The text so far of the only answer."""
        return self.text_of(0)

    def text_of(self, index: int) -> str:
        """Return the text so far of answer `index`."""
        return "".join(self.texts[index])

    def finished(self, index: int = 0) -> Finished:
        """Return the event that ended answer `index`, which must have ended."""
        end = self.ends[index]
        assert end is not None
        return end

    def usage(self, index: int = 0) -> Usage:
        """Return the token counts of answer `index`, which must have ended."""
        return self.finished(index).usage

    def is_cut(self, index: int = 0) -> bool:
        """Say whether answer `index`, which must have ended, was cut at its token limit."""
        return self.finished(index).reason is FinishReason.LENGTH
