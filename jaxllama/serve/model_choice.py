"""The choice of a model: which one a request names, and the wait until it is loaded.

Called for every endpoint of a server with several models, before the handler. The client of a
stream is told in comments of the stream that its model loads. Knows no dialect.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.serve.decode import ON_THE_LOOP, parse_object, read_body
from jaxllama.serve.keys import BEGUN, LEASED, MODELS, SETTINGS
from jaxllama.serve.wire import Framing, ResponseStream
from jaxllama.service import GenerationService
from jaxllama.service.served_models import ServedModels

Act = Callable[[GenerationService], Awaitable[web.StreamResponse]]

QUERY = "model"  # names the model where the body has no field for it


class Uses(StrEnum):
    """Whether an endpoint needs the model that a request names, and whether it must be loaded."""

    MODEL = "model"  # it is loaded for the request
    LOADED_MODEL = "loaded model"  # the request is refused if it is not loaded
    NOTHING = "nothing"


@dataclass(frozen=True)
class ModelChoice:
    """The model that a request names, and whether it asks for a stream."""

    name: str | None  # None: the default model
    streams: bool = False


class ChoicePeek(msgspec.Struct):
    """The fields of a request's body that name the model or ask for a stream."""

    model: Any = None
    name: Any = None
    stream: Any = None


async def read_choice(
    request: web.Request, fields: Collection[str], *, has_body: bool, any_type: bool
) -> ModelChoice:
    """Return the name of the model that a request asks for, and whether it asks for a stream.

    The name is in one of the `fields` of the body, or in the query if `fields` is empty.
    `has_body`: the endpoint takes a JSON body; it is read here, and a handler can read it again.
    `any_type`: the body may have any content type. Raises HttpError or InvalidParameter for a body
    that is no JSON object.
    """
    peek = await peek_at_body(request, any_type=any_type) if has_body else ChoicePeek()
    if not fields:
        return ModelChoice(request.query.get(QUERY), streams=peek.stream is True)
    given = next(filter(None, (getattr(peek, each) for each in fields)), None)
    return ModelChoice(given if isinstance(given, str) else None, streams=peek.stream is True)


async def peek_at_body(request: web.Request, *, any_type: bool) -> ChoicePeek:
    """Return the fields of a JSON body that name the model or ask for a stream.

    Raises InvalidParameter if the body is no JSON object. `any_type` accepts any content type.
    """
    body = await read_body(request, any_type=any_type)
    try:
        return msgspec.json.decode(body, type=ChoicePeek)
    except (msgspec.DecodeError, UnicodeDecodeError):
        depth = request.app[SETTINGS].json_depth
        if len(body) < ON_THE_LOOP:
            parse_object(body, depth)
        else:
            await asyncio.to_thread(parse_object, body, depth)
        raise InvalidParameter("the body is no JSON object") from None


async def serve_loaded(
    request: web.Request, models: ServedModels, name: str | None, framing: Framing | None, act: Act
) -> web.StreamResponse:
    """Load the model that a request names, then return the response that `act` makes.

    `name` is the name in the request; None: the default model. `act` is called with the model's
    service. `framing` is the format of the stream that the request asks for; None: no stream. If
    loading takes longer than the time between two pings, a stream starts before the model is
    loaded, with comments that say what is being loaded; errors are then sent as events of the
    stream.
    """
    if framing is None or not framing.ping:
        async with models.lease(name) as model:
            request[LEASED] = model
            return await act(model.service)
    words = f": loading model {models.find(name).name}\n\n"
    begun = ResponseStream(request, replace(framing, ping=words.encode()))
    async with begun, models.lease(name) as model:
        await begun.end_pings()
        request[LEASED] = model
        if not begun.response.prepared:
            return await act(model.service)
        request[BEGUN] = begun.response
        answer = await act(model.service)
        if isinstance(answer, web.Response) and isinstance(answer.body, bytes):  # no stream
            await begun.finish([msgspec.Raw(answer.body)])
    return begun.response


def query_names(request: web.Request) -> tuple[str, ...]:
    """Return the names of the query parameters that every route takes.

    They are `model`, if the server has several models, or none.
    """
    return () if request.app[MODELS].is_single else (QUERY,)
