"""OpenAI's API: one file for each family of endpoints; `shapes.py` has their common types."""

from typing import Any

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.answering.problem import error_body
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.dialects.openai.chat import CHAT, chat
from jaxllama.serve.dialects.openai.completions import COMPLETIONS, complete
from jaxllama.serve.dialects.openai.embeddings import EMBEDDINGS, embed
from jaxllama.serve.dialects.openai.models import MODEL, MODELS, describe_model, list_models
from jaxllama.serve.dialects.openai.responses import RESPONSES, respond
from jaxllama.serve.endpoints import Endpoint, Serves

ENDPOINTS: dict[Endpoint, Serves] = {
    CHAT: chat,
    COMPLETIONS: complete,
    RESPONSES: respond,
    EMBEDDINGS: embed,
    MODELS: list_models,
    MODEL: describe_model,
}


class OpenAI(Dialect):
    """OpenAI's API: chats, completions, responses, embeddings and models, below /v1."""

    name = "openai"
    endpoints = ENDPOINTS
    prefixes = ("/v1",)

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response."""
        return error_body(error)
