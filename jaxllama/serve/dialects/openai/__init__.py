"""OpenAI's API: one file for each family of endpoints; `shapes.py` has their common types."""

from aiohttp import web

from jaxllama.serve.dialects.openai.chat import CHAT, chat
from jaxllama.serve.dialects.openai.completions import COMPLETIONS, complete
from jaxllama.serve.dialects.openai.embeddings import EMBEDDINGS, embed
from jaxllama.serve.dialects.openai.models import MODEL, MODELS, describe_model, list_models
from jaxllama.serve.dialects.openai.responses import RESPONSES, respond
from jaxllama.serve.dialects.openai.shapes import error_body
from jaxllama.serve.endpoints import Endpoint, Serves, routes_of
from jaxllama.service import GenerationService

__all__ = ["ENDPOINTS", "error_body", "routes"]

ENDPOINTS: dict[Endpoint, Serves] = {
    CHAT: chat,
    COMPLETIONS: complete,
    RESPONSES: respond,
    EMBEDDINGS: embed,
    MODELS: list_models,
    MODEL: describe_model,
}


def routes(service: GenerationService) -> list[web.RouteDef]:
    """Return the routes of all endpoints of this dialect."""
    return routes_of(ENDPOINTS, service)
