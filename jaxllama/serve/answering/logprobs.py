"""Log-probabilities in the form that OpenAI's chats and Ollama have.

Knows tokens and their bytes, no handlers.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from jaxllama.request import TokenLogprobs
from jaxllama.text.tokenizer import Tokenizer


class Alternative(msgspec.Struct, kw_only=True):
    """A token that could have been drawn, with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    control: Literal[True] | UnsetType = UNSET  # not a text, but a token such as <|im_end|>


class TokenLogprob(Alternative):
    """A token and the likeliest alternatives: under the model, and as it was sampled."""

    top_logprobs: list[Alternative]
    sampled_logprob: float
    top_sampled_logprobs: list[Alternative]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text; a part of a character becomes U+FFFD."""
    return tokenizer.piece(token, special=True).decode("utf-8", "replace")


def chat_logprob(tokenizer: Tokenizer, token: int, found: TokenLogprobs) -> TokenLogprob:
    """Convert the log-probabilities of one drawn token to the form that chat answers have.

    `token` is the drawn token; `found` has its log-probabilities and the likeliest alternatives.
    """

    def entry(id_: int, value: float) -> Alternative:
        raw = tokenizer.piece(id_, special=True)
        is_control = tokenizer.piece(id_) == b"" != raw
        return Alternative(
            token=raw.decode("utf-8", "replace"),
            logprob=value,
            bytes=list(raw),
            control=True if is_control else UNSET,
        )

    own = entry(token, found.logprob)
    return TokenLogprob(
        token=own.token,
        logprob=own.logprob,
        bytes=own.bytes,
        control=own.control,
        top_logprobs=[entry(id_, value) for id_, value in found.top],
        sampled_logprob=found.sampled,
        top_sampled_logprobs=[entry(id_, value) for id_, value in found.top_sampled],
    )
