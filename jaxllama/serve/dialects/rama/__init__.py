"""Rama's API: a page, a stream of tokens for a prompt in the URL, and chats.

`generating.py` answers /gen and /chat, `chatting.py` the WebSocket /ws, `page.py` serves the page.
"""

from typing import Annotated

import msgspec

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.dialects.rama.chatting import CHATTING, RamaChatting
from jaxllama.serve.dialects.rama.generating import CHAT, GEN, RamaGenerating
from jaxllama.serve.dialects.rama.page import PAGE, ROOT, show_page


class RamaOptions(DialectOptions, frozen=True):
    """Options of this dialect: Rama's sampling is the operator's, not the request's."""

    step: Annotated[int, msgspec.Meta(ge=1)] = 255  # most tokens of prompt and answer together
    temperature: float = 1.0
    topp: float = 0.9


class Rama(Dialect):
    """Rama's API: GET /gen with Server-Sent Events, POST /chat, a chat at /ws, and its page."""

    name = "rama"
    options_type = RamaOptions
    error_type = str

    def __init__(self, options: DialectOptions | None = None) -> None:
        """Make the request handlers, which sample as `options` say; None: the default options."""
        super().__init__(options)
        knobs = {"temperature": self.options.temperature, "top_p": self.options.topp}
        generating = RamaGenerating(knobs, self.options.step)
        self.endpoints = {
            ROOT: show_page,
            PAGE: show_page,
            GEN: generating.gen,
            CHAT: generating.chat,
            CHATTING: RamaChatting(knobs).serve,
        }

    def error_body(self, error: JaxLlamaError, /) -> str:
        """Return the body of an error response: the error's text."""
        return f"{error}\n"
