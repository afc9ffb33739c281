"""Keys under which handlers find objects of the application and of their request."""

from aiohttp import web

from jaxllama.serve.dialects import Dialect
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService
from jaxllama.service.answers import Caller

SERVICE = web.AppKey("service", GenerationService)
SETTINGS = web.AppKey("settings", Settings)
CALLER = web.RequestKey("caller", Caller)  # the client and the id of the request
# Our field name -> alias that the client sent.
ALIASED = web.RequestKey[dict[str, str]]("aliased", dict)
DIALECT = web.RequestKey[Dialect]("dialect", object)  # type: ignore[arg-type]
