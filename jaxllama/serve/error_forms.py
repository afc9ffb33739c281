"""Error forms: the response for an error in the form of the dialect that a request was meant for.

Used by a gateway, which has no model, for requests that it cannot pass on. Knows no dialect by
name.
"""

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import NoReturn, cast

from aiohttp import web
from yarl import URL

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.app import route_table
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.settings import Settings
from jaxllama.serve.wire import error_response
from jaxllama.service import GenerationService
from jaxllama.service.served_models import ServedModels


class ErrorForms:
    """The errors of all dialects; made on the event loop."""

    def __init__(self, settings: Settings, dialects: Sequence[Dialect]) -> None:
        models = ServedModels.single(GenerationService(no_model, settings.bounds))
        self._table = route_table(models, settings, dialects)
        self._router = web.UrlDispatcher()
        self._router.add_routes(self._table.routes())

    async def response(
        self, error: JaxLlamaError, method: str, target: str, names: Collection[str] = ()
    ) -> web.Response:
        """Return the response that tells a client of `error`, in the form of the HTTP API it used.

        `method` and `target` (path and query) are those of the request. `names` are the fields of
        its body; they matter only for a path that several HTTP APIs share.
        """
        url = URL(target, encoded=True)
        asked = cast(web.Request, SimpleNamespace(method=method, rel_url=url))
        match = await self._router.resolve(asked)
        return error_response(self._table.meant(match.handler, url.path, names), error)


def no_model() -> NoReturn:
    """Raise RuntimeError, because a gateway has no model.

    A service that only sets up routes gets this function in place of one that loads a model.
    """
    raise RuntimeError("a gateway has no model")
