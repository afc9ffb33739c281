"""Where handlers find what belongs to the application and to their request."""

from aiohttp import web

from jaxllama.serve.dialects import Dialect
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService
from jaxllama.service.answers import Caller

SERVICE = web.AppKey("service", GenerationService)
SETTINGS = web.AppKey("settings", Settings)
CALLER = web.RequestKey("caller", Caller)  # the client, and the request's id
ALIASED = web.RequestKey[dict[str, str]]("aliased", dict)  # our field names -> the client's
DIALECT = web.RequestKey[Dialect]("dialect", object)  # type: ignore[arg-type]
