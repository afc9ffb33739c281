"""Endpoints: what a route takes and gives, said once.

Dialects declare theirs and make routes of them; `openapi.py` describes them to the world, so that
what it says is what the handlers use. Knows no particular endpoint.
"""

import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.limits import FRONT, Limit, check, check_count
from jaxllama.serve.decode import note_ignored, read_json
from jaxllama.serve.guard import Handler, open_to_all, serve_always
from jaxllama.serve.keys import ALIASED, SETTINGS
from jaxllama.service import GenerationService
from jaxllama.service.asking import renamed

PATTERN = re.compile(r"\{(\w+)[^}]*\}")  # the variable part of a path


class RequestShape(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a request may say; a field's bounds are the row of its name in the limits table."""

    # Fields that others have and this server cannot honour, and why; only "no" is accepted.
    unsupported: ClassVar[Mapping[str, str]] = {}
    # Fields that an answer may leave aside without being wrong, and why they are: named as
    # ignored, refused under --strict.
    unheeded: ClassVar[Mapping[str, str]] = {}

    def check(self) -> None:
        """Refuse what lies outside the limits or cannot be honoured."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is None or name not in FRONT:
                continue
            if FRONT[name].many:
                check_count(name, len(value))
            elif value != "":
                check(name, value)
        refuse_any(self, self.unsupported)

    def ignored(self, *, strict: bool) -> list[str]:
        """The fields that were given and have no effect; with `strict` they are refused."""
        if strict:
            refuse_any(self, self.unheeded)
        return [name for name in self.unheeded if getattr(self, name)]


def refuse_any(body: RequestShape, why: Mapping[str, str]) -> None:
    """Raise InvalidParameter for a field that is given and among those in `why`."""
    for name, reason in why.items():
        if getattr(body, name):
            raise InvalidParameter(f"{name} is not supported: {reason}", name)


B = TypeVar("B", bound=RequestShape)


@dataclass(frozen=True)
class Endpoint:
    """One route."""

    method: str
    path: str
    summary: str
    answer: Any  # what its JSON is; str: it is plain text
    body: type[RequestShape] | None = None
    events: tuple[type[msgspec.Struct], ...] = ()  # what it streams instead, where asked
    takes_knobs: bool = False  # core knobs and those of every installed sampler
    bounds: Mapping[str, Limit] = field(default_factory=dict, hash=False)  # other than usual
    otherwise: Mapping[int, Any] = field(default_factory=dict, hash=False)  # instead of errors
    is_open: bool = False  # needs no key
    is_vital: bool = False  # served on connections in reserve, too

    @property
    def plain_path(self) -> str:
        """The path without what only the router understands."""
        return PATTERN.sub(r"{\1}", self.path)

    @property
    def name(self) -> str | None:
        """The variable part of the path, if there is one."""
        found = PATTERN.search(self.path)
        return found[1] if found else None

    async def read(
        self, request: web.Request, service: GenerationService, shape: type[B]
    ) -> tuple[B, dict[str, Any]]:
        """The checked body of a request, and the knobs in it."""
        known = service.model.knobs if self.takes_knobs else frozenset[str]()
        body, knobs = await read_json(request, shape, knobs=known)
        body.check()
        note_ignored(request, body.ignored(strict=request.app[SETTINGS].strict))
        return body, knobs


Serves = Callable[[web.Request, GenerationService], Awaitable[web.StreamResponse]]


def routes_of(
    endpoints: Mapping[Endpoint, Serves], service: GenerationService
) -> list[web.RouteDef]:
    """The routes of a dialect, each with its handler."""
    return [
        web.route(endpoint.method, endpoint.path, bind_service(endpoint, serve, service))
        for endpoint, serve in endpoints.items()
    ]


def bind_service(endpoint: Endpoint, serve: Serves, service: GenerationService) -> Handler:
    """An aiohttp handler of one service; its errors call fields by the names the client sent."""

    @functools.wraps(serve)
    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await serve(request, service)
        except InvalidParameter as error:
            aliased = request.get(ALIASED)
            if not aliased:
                raise
            raise renamed(error, aliased) from error

    if endpoint.is_vital:
        serve_always(handler)
    return open_to_all(handler) if endpoint.is_open else handler
