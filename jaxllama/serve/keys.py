"""Keys under which handlers find objects of the application and of their request."""

from typing import Any, Protocol

from aiohttp import web

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.settings import Settings
from jaxllama.service.answers import Caller
from jaxllama.service.served_models import ServedModel, ServedModels


class ErrorForm(Protocol):
    """The form in which a dialect sends errors."""

    def error_body(self, error: JaxLlamaError, /) -> Any:
        """Return the body of an error response: a value for JSON, or a str for plain text."""

    def error_status(self, error: JaxLlamaError, /) -> int:
        """Return the HTTP status of an error response."""


MODELS = web.AppKey("models", ServedModels)
SETTINGS = web.AppKey("settings", Settings)
CALLER = web.RequestKey("caller", Caller)  # the client and the id of the request
# Our field name -> alias that the client sent.
ALIASED = web.RequestKey[dict[str, str]]("aliased", dict)
DIALECT = web.RequestKey[ErrorForm]("dialect", object)  # type: ignore[arg-type]
# The model that the request uses, while it does.
LEASED = web.RequestKey("leased", ServedModel)
# The response of a stream that began while its model was still loading.
BEGUN = web.RequestKey("begun", web.StreamResponse)
