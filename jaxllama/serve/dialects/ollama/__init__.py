"""Ollama's API: answers, vectors and facts about the model, below /api.

`shapes.py` has the types, `answering.py` generates, `facts.py` describes the model, `vectors.py`
embeds. Bodies may have any content type, because users' curl lines send none.
"""

from aiohttp import web

from jaxllama.errors import JaxLlamaError, UnknownModel
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.dialects.ollama.answering import CHAT, GENERATE, chat, generate
from jaxllama.serve.dialects.ollama.facts import (
    PS,
    PULL,
    SHOW,
    TAGS,
    VERSION,
    ps,
    pull,
    show,
    tags,
    tell_version,
)
from jaxllama.serve.dialects.ollama.shapes import OllamaError
from jaxllama.serve.dialects.ollama.vectors import EMBED, OLD_EMBED, embed, embed_one
from jaxllama.serve.endpoints import Endpoint, Serves
from jaxllama.serve.model_choice import Uses
from jaxllama.service import GenerationService

ROOT = Endpoint(
    "GET",
    "/",
    "Say that the server runs, as Ollama does",
    answer=str,
    is_open=True,
    uses=Uses.NOTHING,
)


async def root(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET / with the text by which clients recognize Ollama."""
    del request, service
    return web.Response(text="Ollama is running")


ENDPOINTS: dict[Endpoint, Serves] = {
    CHAT: chat,
    GENERATE: generate,
    EMBED: embed,
    OLD_EMBED: embed_one,
    TAGS: tags,
    SHOW: show,
    PS: ps,
    PULL: pull,
    VERSION: tell_version,
    ROOT: root,
}


class Ollama(Dialect):
    """Ollama's API: chat, generate, embed, tags, show, ps, pull and version, below /api."""

    name = "ollama"
    endpoints = ENDPOINTS
    error_type = OllamaError
    prefixes = ("/api",)

    def error_body(self, error: JaxLlamaError, /) -> OllamaError:
        """Return the body of an error response."""
        if isinstance(error, UnknownModel):
            return OllamaError(f"model '{error.name}' not found: {error}")
        return OllamaError(str(error))
