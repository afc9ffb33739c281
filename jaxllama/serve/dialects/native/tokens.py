"""Tokens and templates made visible: `/tokenize`, `/detokenize`, `/apply-template`."""

import msgspec
from aiohttp import web

from jaxllama.messages import Ending
from jaxllama.serve.dialects.openai.chat import as_turn
from jaxllama.serve.dialects.openai.chat_shapes import Turn
from jaxllama.serve.dialects.openai.constraints import ToolDefinition, as_tool
from jaxllama.serve.endpoints import Body, Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model
from jaxllama.service.asking import weight


class TokenizeBody(Body):
    """A text; `special` reads control tokens in it, `begin` adds the begin-of-text token."""

    text: str
    special: bool = False
    begin: bool | None = None


class Tokens(msgspec.Struct):
    """Token ids, and what each one spells."""

    tokens: list[int]
    pieces: list[str]
    count: int


class DetokenizeBody(Body):
    """Token ids; `special` spells control tokens out."""

    tokens: list[int]
    special: bool = False


class Text(msgspec.Struct):
    """A text."""

    text: str


class TemplateBody(Body):
    """A conversation, as a chat takes it."""

    messages: list[Turn]
    tools: list[ToolDefinition] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class Rendered(msgspec.Struct):
    """What the prompt format makes of a conversation, and how the model reads it."""

    prompt: str
    tokens: list[int]
    count: int


TOKENIZE = Endpoint("POST", "/tokenize", "Text to token ids", body=TokenizeBody, answer=Tokens)
DETOKENIZE = Endpoint("POST", "/detokenize", "Token ids to text", body=DetokenizeBody, answer=Text)
TEMPLATE = Endpoint(
    "POST",
    "/apply-template",
    "The prompt that a conversation becomes",
    body=TemplateBody,
    answer=Rendered,
)


async def tokenize(request: web.Request, service: GenerationService) -> web.Response:
    """Text to token ids."""
    body, _ = await TOKENIZE.read(request, service, TokenizeBody)

    def work(model: Model) -> Tokens:
        tokenizer = model.intake.tokenizer
        ids = tokenizer.encode(body.text, special=body.special, begin=body.begin)
        spelled = {id_: tokenizer.piece(id_, special=True) for id_ in set(ids)}
        texts = {id_: piece.decode("utf-8", "replace") for id_, piece in spelled.items()}
        return Tokens(ids, [texts[id_] for id_ in ids], len(ids))

    return one_json(await service.off_loop(work, request[CALLER], size=len(body.text)))


async def detokenize(request: web.Request, service: GenerationService) -> web.Response:
    """Token ids to text."""
    body, _ = await DETOKENIZE.read(request, service, DetokenizeBody)

    def work(model: Model) -> Text:
        ids = model.intake.ids(body.tokens, fits=False)
        return Text(model.intake.tokenizer.decode(ids, special=body.special))

    return one_json(await service.off_loop(work, request[CALLER], size=len(body.tokens)))


async def apply_template(request: web.Request, service: GenerationService) -> web.Response:
    """A conversation as the prompt it becomes."""
    body, _ = await TEMPLATE.read(request, service, TemplateBody)
    ending = Ending.ANSWER if body.add_generation_prompt else Ending.CLOSED
    ending = Ending.LAST if body.continue_final_message else ending
    turns = [as_turn(turn) for turn in body.messages]
    tools = [as_tool(tool) for tool in body.tools or ()]

    def work(model: Model) -> Rendered:
        prompt = model.intake.chat_text(turns, tools=tools, ending=ending)
        ids = model.intake.chat_ids(turns, tools=tools, ending=ending, fits=False)
        return Rendered(prompt, ids, len(ids))

    size = weight([turns, tools])
    return one_json(await service.off_loop(work, request[CALLER], size=size))
