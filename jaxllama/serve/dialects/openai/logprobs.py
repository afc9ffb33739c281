"""Log-probabilities in OpenAI's older form, of completions.

Knows tokens and their bytes, no handlers.
"""

import codecs

import msgspec

from jaxllama.request import TokenLogprobs
from jaxllama.serve.answering.logprobs import token_text
from jaxllama.text.tokenizer import Tokenizer


class OldLogprobs(msgspec.Struct):
    """Log-probabilities of a completion: lists of equal length, one entry per token."""

    tokens: list[str] = msgspec.field(default_factory=list)
    token_logprobs: list[float | None] = msgspec.field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = msgspec.field(default_factory=list)
    text_offset: list[int] = msgspec.field(default_factory=list)

    def extend(self, more: "OldLogprobs") -> None:
        """Append the entries of all tokens in `more` to the lists of this object."""
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset


class LogprobsWriter:
    """Converts log-probabilities of one completion, token by token, with their text offsets."""

    def __init__(self, tokenizer: Tokenizer, place: int = 0) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._place = place

    def add(self, to: OldLogprobs, token: int, found: TokenLogprobs | None) -> None:
        """Append the entries of one token to `to`, the completion's log-probabilities so far.

        `found` has the token's log-probabilities; None for the first token of a prompt, which has
        none.
        """
        to.tokens.append(token_text(self._tokenizer, token))
        to.text_offset.append(self._place)
        self._place += len(self._decoder.decode(self._tokenizer.piece(token)))
        to.token_logprobs.append(None if found is None else found.logprob)
        if found is None:
            to.top_logprobs.append(None)
            return
        top: dict[str, float] = {}
        for id_, value in found.top:  # two ids may have the same text: the more likely one is kept
            top.setdefault(token_text(self._tokenizer, id_), value)
        to.top_logprobs.append(top)
