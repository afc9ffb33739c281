"""basilisk's API, below /basilisk: ping, config, embed, tokenize and infer.

`options.py` has the operator's defaults, `encoding.py` its way to make tokens, `inferring.py` the
answers, `facts.py` the rest.
"""

from aiohttp import web

from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.serve.dialect import Dialect, DialectOptions
from jaxllama.serve.dialects.basilisk.facts import (
    CONFIG,
    EMBED,
    PING,
    TOKENIZE,
    BasiliskError,
    BasiliskFacts,
    embed,
    ping,
    tokenize,
)
from jaxllama.serve.dialects.basilisk.inferring import INFER, BasiliskInferring
from jaxllama.serve.dialects.basilisk.options import BasiliskOptions, read_defaults

UNAUTHORIZED, FORBIDDEN = 401, 403


class BasiliskDialect(Dialect):
    """basilisk's API, below /basilisk: ping, config, embed, tokenize and infer."""

    name = "basilisk"
    options_type = BasiliskOptions
    error_type = BasiliskError

    def __init__(self, options: DialectOptions | None = None) -> None:
        """Read the operator's config.json, if `options` name one, and make the handlers."""
        super().__init__(options)
        defaults = read_defaults(self.options)
        self.endpoints = {
            PING: ping,
            CONFIG: BasiliskFacts(defaults).config,
            EMBED: embed,
            TOKENIZE: tokenize,
            INFER: BasiliskInferring(defaults).infer,
        }

    def error_body(self, error: JaxLlamaError, /) -> BasiliskError:
        """Return the body of an error response."""
        if error.status == UNAUTHORIZED:
            return BasiliskError("unauthorized")
        if isinstance(error, InvalidParameter) and error.field == "prompt":
            return BasiliskError(f"prompt required: {error}")
        return BasiliskError(str(error))

    def error_status(self, error: JaxLlamaError, /) -> int:
        """Return the status of an error response: 403 without the shared secret."""
        return FORBIDDEN if error.status == UNAUTHORIZED else error.status

    def key(self, request: web.BaseRequest, /) -> str:
        """Return the shared secret: the whole header Authorization, or a bearer token."""
        return super().key(request) or request.headers.get("Authorization", "")
