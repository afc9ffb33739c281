"""`/infer_precise`, `/infer_creative` and `/infer_sphinx`, as in ExLlama's example_flask.

A form with the field `prompt` gives the prompt and 200 tokens after it, as plain text.
"""

from collections.abc import Mapping
from urllib.parse import parse_qs

from aiohttp import web

from jaxllama.errors import HttpError, InvalidParameter
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.decode import check_names, read_text
from jaxllama.serve.endpoints import Endpoint, Serves
from jaxllama.serve.keys import CALLER
from jaxllama.serve.origin import check_origin
from jaxllama.service import Ask, GenerationService

FORM = "application/x-www-form-urlencoded"
NEW_TOKENS = 200
COMMON = {"max_tokens": NEW_TOKENS, "top_p_strict": True}
PRECISE = {"temperature": 0.7, "top_p": 0.1, "top_k": 40, "repetition_penalty": 1.176}
CREATIVE = {"temperature": 0.72, "top_p": 0.73, "top_k": 0, "repetition_penalty": 1.1}
SPHINX = {"temperature": 1.99, "top_p": 0.18, "top_k": 30, "repetition_penalty": 1.15}


class ExampleInference:
    """The handler of one endpoint, with its sampling."""

    def __init__(self, name: str, knobs: Mapping[str, float]) -> None:
        self.__name__ = name
        self._knobs = {**COMMON, **knobs}

    async def __call__(
        self, request: web.Request, service: GenerationService
    ) -> web.StreamResponse:
        """Answer POST /infer_NAME with the prompt and its continuation, as plain text."""
        check_origin(request)
        prompt = await read_prompt(request)
        knobs = with_defaults(service.model, {}, self._knobs)
        context = service.model.engine.config.context
        ask = Ask(prompts=[prompt], knobs=knobs, total=context)
        async with service.open(ask, request[CALLER]) as answers:
            pieces = [event.text async for _, event in answers]
        return web.Response(text=prompt + "".join(pieces))


async def read_prompt(request: web.Request) -> str:
    """Return the field `prompt` of the form in a request's body.

    Raises HttpError if the body is no form, InvalidParameter if `prompt` is missing or empty.
    """
    if request.content_type != FORM:
        raise HttpError(
            f"content type is {request.content_type[:100]!r}; expected {FORM}",
            415,
            "unsupported_media_type",
        )
    fields = parse_qs(await read_text(request), keep_blank_values=True, max_num_fields=64)
    check_names(request, fields, ("prompt",))
    if not fields.get("prompt", [""])[0]:
        raise InvalidParameter("prompt is missing or empty; expected text", "prompt")
    return fields["prompt"][0]


def example(name: str, summary: str) -> Endpoint:
    """Return the endpoint POST /infer_NAME of ExLlama's example.

    `summary` describes its sampling.
    """
    return Endpoint("POST", f"/infer_{name}", f"Continue a prompt: {summary}", answer=str)


EXAMPLES: dict[Endpoint, Serves] = {
    example("precise", "near the likeliest tokens"): ExampleInference("precise", PRECISE),
    example("creative", "with more variety"): ExampleInference("creative", CREATIVE),
    example("sphinx", "hot, among very few tokens"): ExampleInference("sphinx", SPHINX),
}
