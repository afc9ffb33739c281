"""Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`.

`shapes.py` has the types of requests, `event_shapes.py` those of answers and stream events,
`conversation.py` converts messages and tools, `messages.py` generates and counts.
"""

from typing import Any

from aiohttp import web

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.dialects.anthropic.event_shapes import AnthropicErrorBody, AnthropicProblem
from jaxllama.serve.dialects.anthropic.messages import (
    COUNT_TOKENS,
    MESSAGES,
    count_tokens,
    create_message,
)
from jaxllama.serve.endpoints import Endpoint, Serves
from jaxllama.serve.guard import bearer_key

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
SERVER_FAULT = 500


class Anthropic(Dialect):
    """Anthropic's API: messages with tools, streamed or not, and counting of tokens."""

    name = "anthropic"
    endpoints: dict[Endpoint, Serves] = {  # noqa: RUF012 - a table
        MESSAGES: create_message,
        COUNT_TOKENS: count_tokens,
    }
    error_type = AnthropicErrorBody
    headers = (
        "X-Api-Key",
        "Anthropic-Version",
        "Anthropic-Beta",
        "Anthropic-Dangerous-Direct-Browser-Access",
    )

    def error_body(self, error: JaxLlamaError, /) -> Any:
        """Return the body of an error response; in a stream it is sent as an event."""
        usual = "api_error" if error.status >= SERVER_FAULT else "invalid_request_error"
        kind = ERROR_TYPES.get(error.status, usual)
        return AnthropicErrorBody(AnthropicProblem(kind, str(error)))

    def key(self, request: web.BaseRequest, /) -> str:
        """Return the API key: the header X-Api-Key, or the bearer token; "" if there is none."""
        return request.headers.get("X-Api-Key", "").strip() or bearer_key(request)
