"""Log-probabilities in the form that OpenAI's chats and Ollama have.

Knows tokens and their bytes, no handlers.
"""

import msgspec

from jaxllama.request import TokenLogprobs
from jaxllama.text.tokenizer import Tokenizer


class Alternative(msgspec.Struct):
    """A token that could have been drawn, with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    """A token and the likeliest alternatives: under the model, and as it was sampled."""

    top_logprobs: list[Alternative]
    sampled_logprob: float
    top_sampled_logprobs: list[Alternative]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text; a part of a character becomes U+FFFD."""
    return tokenizer.piece(token, special=True).decode("utf-8", "replace")


def chat_logprob(tokenizer: Tokenizer, token: int, found: TokenLogprobs) -> TokenLogprob:
    """Convert the log-probabilities of one token to the form of chats."""

    def entry(id_: int, value: float) -> Alternative:
        raw = tokenizer.piece(id_, special=True)
        return Alternative(raw.decode("utf-8", "replace"), value, list(raw))

    own = entry(token, found.logprob)
    return TokenLogprob(
        token=own.token,
        logprob=own.logprob,
        bytes=own.bytes,
        top_logprobs=[entry(id_, value) for id_, value in found.top],
        sampled_logprob=found.sampled,
        top_sampled_logprobs=[entry(id_, value) for id_, value in found.top_sampled],
    )
