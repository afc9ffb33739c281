"""What a dialect is: one API, translated. A module with the two functions of `Dialect`.

A dialect turns its JSON into an `Ask` and the events of the answers into its own bytes. Sockets,
limits, authentication, queueing, cancellation, pings, time limits and logs are not its business.
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
STOP_STRING: everything else that can end an answer is raised by the loop. Raise what is wrong with
a request (any `JaxLlamaError`) and leave it alone: before the first byte it becomes a response
with `error.status` and `error_body(error)`, later one last event (`Sse` writes it). `answers` also
has `id`, and `requests`: per index the prompt's tokens, the seed and the budget. Choice i of
prompt p has index p * n + i and the seed `choice_seed(seed, i)`.

Work that takes longer than a millisecond must not run on the event loop:
`await service.off_loop(f, request[CALLER], size=characters)` calls f(model) in a thread
(tokenizing, templates). Work that reads in a slot without generating, such as
`Engine.peek_in_steps`, waits in the fair queue like a generation:
`await service.ask_engine([Question(begin, tokens)], request[CALLER])`. A handler that needs no key
says so with `@open_to_all` from `guard`. Add the module to `DIALECTS` in `app.py`.
"""

from typing import Any, Protocol

from aiohttp import web

from jaxllama.errors import JaxLlamaError
from jaxllama.service import GenerationService


class Dialect(Protocol):
    """One API; a module will do."""

    def routes(self, service: GenerationService, /) -> list[web.RouteDef]:
        """Its routes, each with its handler."""

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """An error in its own form."""
