"""Endpoints: declarations of routes with the types of their requests and responses.

Dialects declare endpoints and make routes of them; `openapi.py` describes the same declarations, so
the description agrees with the handlers. Knows no particular endpoint.
"""

import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.limits import FRONT, Limit, check, check_count
from jaxllama.serve.decode import note_ignored, read_json
from jaxllama.serve.guard import Handler, open_to_all, serve_always
from jaxllama.serve.keys import ALIASED, SETTINGS
from jaxllama.serve.model_choice import QUERY, Uses, read_choice, serve_loaded
from jaxllama.serve.wire import SSE, Framing
from jaxllama.service import GenerationService
from jaxllama.service.asking import renamed
from jaxllama.service.served_models import ServedModels

PATTERN = re.compile(r"\{(\w+)[^}]*\}")  # the variable part of a path


class RequestShape(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies; bounds of a field are in the limits table under its name."""

    # Fields of other servers that this server does not support -> reason; refused if truthy.
    unsupported: ClassVar[Mapping[str, str]] = {}
    # Fields that may be ignored without making the answer wrong -> reason; they are reported as
    # ignored, and refused under --strict.
    unheeded: ClassVar[Mapping[str, str]] = {}
    # A field that only this body has, where another dialect has the same path.
    told_by: ClassVar[str | None] = None

    def check(self) -> None:
        """Raise InvalidParameter for a field that is out of bounds or not supported."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is None or name not in FRONT or isinstance(value, msgspec.Struct):
                continue  # a structure declares the bounds of its own fields
            if FRONT[name].many:
                check_count(name, 1 if isinstance(value, str) else len(value))
            elif value != "":
                check(name, value)
        refuse_any(self, self.unsupported)

    def ignored(self, *, strict: bool) -> list[str]:
        """Return the names of the given fields that have no effect.

        With `strict`, raises InvalidParameter if there are any.
        """
        if strict:
            refuse_any(self, self.unheeded)
        return [name for name in self.unheeded if getattr(self, name)]


def refuse_any(body: RequestShape, why: Mapping[str, str]) -> None:
    """Raise InvalidParameter if one of the fields in `why` is set (true or not empty) in a body.

    `why` maps the name of each field to the reason why it is refused, for the error.
    """
    for name, reason in why.items():
        if getattr(body, name):
            raise InvalidParameter(f"{name} is not supported: {reason}", name)


B = TypeVar("B", bound=RequestShape)


@dataclass(frozen=True)
class Endpoint:
    """Declaration of one route."""

    method: str
    path: str
    summary: str
    answer: Any  # type of the JSON response; str: plain text
    body: type[RequestShape] | None = None
    events: tuple[type[msgspec.Struct], ...] = ()  # types of the events, if it can stream
    takes_encoder: bool = False  # its `model` may be the encoder
    uses: Uses = Uses.MODEL  # what it needs of the model that a request names
    takes_knobs: bool = False  # accepts core knobs and the knobs of all installed samplers
    # Limits that differ from the table.
    bounds: Mapping[str, Limit] = field(default_factory=dict, hash=False)
    # Status -> type of a response that is no error body.
    otherwise: Mapping[int, Any] = field(default_factory=dict, hash=False)
    is_open: bool = False  # needs no key
    is_vital: bool = False  # served on connections in reserve, too
    # Reads bodies of any content type, as the system it comes from does; not those of web pages.
    any_type: bool = False
    framing: Framing = SSE  # of the stream

    @property
    def plain_path(self) -> str:
        """The path with `{name}` in place of aiohttp's `{name:pattern}`, for descriptions."""
        return PATTERN.sub(r"{\1}", self.path)

    @property
    def model_fields(self) -> tuple[str, ...]:
        """The names of the body's fields that can name a model; () if only the query can."""
        fields = () if self.body is None else self.body.__struct_fields__
        return tuple(each for each in ("model", "name") if each in fields and "model" in fields)

    @property
    def always_streams(self) -> bool:
        """Say whether every answer is a stream."""
        return self.answer is None and bool(self.events)

    @property
    def name(self) -> str | None:
        """Name of the variable part of the path, or None."""
        found = PATTERN.search(self.path)
        return found[1] if found else None

    async def read(
        self, request: web.Request, service: GenerationService, shape: type[B]
    ) -> tuple[B, dict[str, Any]]:
        """Decode and check the body of a request; return (body as `shape`, generation parameters).

        The generation parameters are the fields for the engine and the samplers, by name; {} if the
        endpoint takes none. Raises InvalidParameter if the body is wrong.
        """
        known = service.model.knobs if self.takes_knobs else frozenset[str]()
        body, knobs = await read_json(request, shape, knobs=known, any_type=self.any_type)
        body.check()
        note_ignored(request, body.ignored(strict=request.app[SETTINGS].strict))
        return body, knobs


Serves = Callable[[web.Request, GenerationService], Awaitable[web.StreamResponse]]


def routes_of(endpoints: Mapping[Endpoint, Serves], models: ServedModels) -> list[web.RouteDef]:
    """Make the aiohttp routes of endpoints; `endpoints` maps each one to its handler.

    A route calls its handler with the service of the model, out of `models`, that a request names.
    """
    return [
        web.route(endpoint.method, endpoint.path, bind_models(endpoint, serve, models))
        for endpoint, serve in endpoints.items()
    ]


def told_by(handler: object) -> str | None:
    """Return the name of the body field that marks requests for this handler; None: no field.

    If several HTTP APIs (dialects) have the same path, only one of them has this field: a request
    with the field is for that API.
    """
    return getattr(handler, "told_by", None)


def bind_models(endpoint: Endpoint, serve: Serves, models: ServedModels) -> Handler:
    """Make the aiohttp handler that calls `serve` with the service of the request's model.

    If the client sent a field under an alias, errors about the field mention the alias.
    """

    @functools.wraps(serve)
    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await serve_with_model(request, endpoint, serve, models)
        except InvalidParameter as error:
            aliased = request.get(ALIASED)
            if not aliased:
                raise
            raise renamed(error, aliased) from error

    if endpoint.body is not None:
        handler.told_by = endpoint.body.told_by  # type: ignore[attr-defined]
    if endpoint.is_vital:
        serve_always(handler)
    return open_to_all(handler) if endpoint.is_open else handler


async def serve_with_model(
    request: web.Request, endpoint: Endpoint, serve: Serves, models: ServedModels
) -> web.StreamResponse:
    """Call `serve` with the service of the model that a request names; load the model if necessary.

    The model stays loaded during the call. Some endpoints refuse a model that is not loaded. An
    endpoint that needs no model gets the service of the default model, loaded or not.
    """
    if endpoint.uses is Uses.NOTHING or models.is_single:
        return await serve(request, models.default.service)
    if endpoint.uses is Uses.LOADED_MODEL:
        return await serve(request, models.loaded(request.query.get(QUERY)).service)
    choice = await read_choice(
        request,
        endpoint.model_fields,
        has_body=endpoint.body is not None,
        any_type=endpoint.any_type,
    )
    framing = endpoint.framing if choice.streams or endpoint.always_streams else None
    return await serve_loaded(request, models, choice.name, framing, partial(serve, request))
