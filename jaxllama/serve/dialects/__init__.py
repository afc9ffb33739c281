"""Dialects: each translates one HTTP API. A module with the two functions of `Dialect`.

A dialect converts its JSON to an `Ask`, and the events of the answers to its JSON. The rest of the
server handles sockets, limits, authentication, queueing, cancellation, pings, timeouts and logs.
Every handler has the same five steps:

    def routes(service):
        async def complete(request):
            body, knobs = await read_json(request, Body, knobs=service.model.knobs)        # parse
            ask = Ask(prompts=[body.prompt], knobs=knobs, n=body.n)
            async with service.open(ask, request[CALLER]) as answers:                      # open
                if not body.stream:
                    return one_json(await collect(answers))
                async with Sse(request) as sse:                                            # writer
                    async for index, event in answers:                                     # events
                        await sse.send(chunk(answers.id, index, event))
                    await sse.finish()                                                     # finish
            return sse.response
        return [web.post("/v1/completions", complete)]

    def error_body(error):
        return {"error": {"message": str(error), "code": error.code}}

`event` is a `Token` or, once per choice, a `Finished` whose reason is LENGTH, END_TOKEN or
STOP_STRING: any other end of an answer is raised as an error by the loop. For a wrong request,
raise a `JaxLlamaError` and do not catch it: before the first byte it becomes a response with
`error.status` and `error_body(error)`, later a last event (`Sse` writes it). `answers` also has
`id`, and `requests`: per index the prompt's tokens, the seed and the token budget. Choice i of
prompt p has index p * n + i and the seed `choice_seed(seed, i)`.

Work that takes longer than a millisecond must not run on the event loop:
`await service.off_loop(f, request[CALLER], size=characters)` calls f(model) in a thread
(tokenizing, templates). Work that needs a slot but does not generate, such as
`Probes.peek`, waits in the fair queue like a generation:
`await service.ask_engine([Question(begin, tokens)], request[CALLER])`. Mark a handler that
needs no key with `@open_to_all` from `guard`. Add the module to `DIALECTS` in `app.py`.
"""

from typing import Any, Protocol

from aiohttp import web

from jaxllama.errors import JaxLlamaError
from jaxllama.service import GenerationService


class Dialect(Protocol):
    """One HTTP API; implemented by a module."""

    def routes(self, service: GenerationService, /) -> list[web.RouteDef]:
        """Return the routes of the API, with their handlers."""

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response in the API's form."""
