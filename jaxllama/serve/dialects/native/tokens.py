"""Tokens and templates: `/tokenize`, `/detokenize`, `/apply-template`.

The first two also accept and return the fields of vLLM's and llama.cpp's routes of the same names,
so that clients made for those servers work.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jaxllama.errors import InvalidParameter
from jaxllama.messages import Ending
from jaxllama.serve.answering.constraints import ToolDefinition, as_tool
from jaxllama.serve.answering.models import ModelBody, check_model
from jaxllama.serve.answering.turns import Turn, as_turn, chosen_format
from jaxllama.serve.decode import note_ignored
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model
from jaxllama.service.asking import estimate_characters
from jaxllama.text.tokenizer import Tokenizer

OF_TEXTS = ("special", "begin", "add_special_tokens", "add_special", "parse_special")
SourceField = Literal["text", "prompt", "content", "messages"]


class ConversationBody(ModelBody, kw_only=True):
    """Base of bodies with a conversation and options for the end of its prompt."""

    messages: list[Turn] | None = None
    tools: list[ToolDefinition] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    format: str | None = None  # name of an installed prompt format, for messages


class TokenizeBody(ConversationBody, kw_only=True):
    """A text in one of three fields, or a conversation.

    `text` is our field: control tokens in it are plain text unless `special`, and `begin` adds the
    begin-of-text token. `prompt` is vLLM's field and `content` llama.cpp's: control tokens are
    parsed, and the begin-of-text token is added if that server adds it.
    """

    text: str | None = None
    special: bool | None = None
    begin: bool | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    content: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool = False


class PiecedToken(msgspec.Struct):
    """A token id and its text, or its bytes if the token is a part of a character."""

    id: int
    piece: str | list[int]


class Tokens(msgspec.Struct):
    """Token ids and their number; `pieces` and `token_strs` are the texts of the tokens."""

    tokens: list[int | PiecedToken]
    count: int
    max_model_len: int
    pieces: list[str] | UnsetType = UNSET
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeBody(ModelBody, kw_only=True):
    """Token ids to convert to text; with `special`, control tokens are written as text."""

    tokens: list[int]
    special: bool = False


class DetokenizedText(msgspec.Struct):
    """The text of tokens, also in the fields of vLLM (`prompt`) and llama.cpp (`content`)."""

    text: str
    prompt: str
    content: str


class TemplateBody(ConversationBody, kw_only=True):
    """A conversation in the form of a chat request."""

    messages: list[Turn]


class Rendered(msgspec.Struct):
    """The prompt of a conversation, as text and as token ids."""

    prompt: str
    tokens: list[int]
    count: int


TOKENIZE = Endpoint(
    "POST",
    "/tokenize",
    "Convert text or a conversation to token ids",
    body=TokenizeBody,
    answer=Tokens,
)
DETOKENIZE = Endpoint(
    "POST", "/detokenize", "Convert token ids to text", body=DetokenizeBody, answer=DetokenizedText
)
TEMPLATE = Endpoint(
    "POST",
    "/apply-template",
    "Render a conversation as prompt",
    body=TemplateBody,
    answer=Rendered,
)


async def tokenize(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /tokenize with the token ids of a text or a conversation."""
    body, _ = await TOKENIZE.read(request, service, TokenizeBody)
    check_model(body.model, service.model)
    source = find_source(body)
    conversation = None
    if body.format is not None and source != "messages":
        raise InvalidParameter(f"format is for messages, but {source} is given", "format")
    if source == "messages":
        conversation = read_conversation(request, service.model, body)
        note_ignored(request, [name for name in OF_TEXTS if getattr(body, name) is not None])

    def work(model: Model) -> Tokens:
        tokenizer = model.intake.tokenizer
        ids = (
            encode_text(tokenizer, body, source)
            if conversation is None
            else conversation.ids(model)
        )
        return tokens_of(tokenizer, body, ids, model.engine.config.context)

    size = len(getattr(body, source)) if conversation is None else conversation.size
    return one_json(await service.off_loop(work, request[CALLER], size=size))


def find_source(body: TokenizeBody) -> SourceField:
    """Return the one of text, prompt, content and messages that is given.

    Raises InvalidParameter if none or several are.
    """
    sources: tuple[SourceField, ...] = ("text", "prompt", "content", "messages")
    given = [name for name in sources if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidParameter(
            f"{' and '.join(given) or 'nothing'} given to tokenize; expected one of "
            f"{', '.join(sources)}",
            given[0] if given else "text",
        )
    return given[0]


def encode_text(tokenizer: Tokenizer, body: TokenizeBody, source: SourceField) -> list[int]:
    """Convert the text in the body's field `source` to token ids.

    Each possible field comes from a different API; special tokens are handled as in that API.
    """
    special = body.special if body.parse_special is None else body.parse_special
    begin = body.begin
    if begin is None and (
        body.add_special_tokens is False or (source == "content" and not body.add_special)
    ):
        begin = False
    return tokenizer.encode(
        getattr(body, source),
        special=source != "text" if special is None else special,
        begin=begin,
    )


def tokens_of(tokenizer: Tokenizer, body: TokenizeBody, ids: Sequence[int], context: int) -> Tokens:
    """Build the response of /tokenize; `context` is the engine's context length in tokens."""
    found = Tokens(list(ids), len(ids), context)
    raw = [tokenizer.piece(id_, special=True) for id_ in ids]
    pieces = [piece.decode("utf-8", "replace") for piece in raw]
    if body.text is not None:
        found.pieces = pieces
    if body.return_token_strs:
        found.token_strs = pieces
    if body.with_pieces:
        whole = [
            text if text.encode() == piece else list(piece)
            for text, piece in zip(pieces, raw, strict=True)
        ]
        found.tokens = [PiecedToken(*each) for each in zip(ids, whole, strict=True)]
    return found


async def detokenize(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /detokenize with the text of token ids."""
    body, _ = await DETOKENIZE.read(request, service, DetokenizeBody)
    check_model(body.model, service.model)

    def work(model: Model) -> DetokenizedText:
        ids = model.intake.ids(body.tokens, fits=False)
        text = model.intake.tokenizer.decode(ids, special=body.special)
        return DetokenizedText(text, text, text)

    return one_json(await service.off_loop(work, request[CALLER], size=len(body.tokens)))


async def apply_template(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /apply-template with the prompt of a conversation, as text and token ids."""
    body, _ = await TEMPLATE.read(request, service, TemplateBody)
    check_model(body.model, service.model)
    conversation = read_conversation(request, service.model, body)

    def work(model: Model) -> Rendered:
        ids = conversation.ids(model)
        return Rendered(conversation.text(model), ids, len(ids))

    return one_json(await service.off_loop(work, request[CALLER], size=conversation.size))


class RenderedConversation:
    """Renders a conversation as text or as token ids."""

    def __init__(self, format_: str | None, turns: list[Any], **more: Any) -> None:
        self._format, self._turns, self._more = format_, turns, more
        self.size = estimate_characters([turns, more.get("tools")])  # characters

    def text(self, model: Model) -> str:
        """Return the prompt as text."""
        return model.intake.with_format(self._format).chat_text(self._turns, **self._more)

    def ids(self, model: Model) -> list[int]:
        """Return the prompt as token ids, even if it exceeds the context."""
        speaking = model.intake.with_format(self._format)
        return speaking.chat_ids(self._turns, fits=False, **self._more)


def read_conversation(
    request: web.Request, model: Model, body: ConversationBody
) -> RenderedConversation:
    """Return the conversation of a body, in the prompt format that a chat would use."""
    ending = Ending.ANSWER if body.add_generation_prompt else Ending.CLOSED
    ending = Ending.LAST if body.continue_final_message else ending
    turns = [as_turn(turn) for turn in body.messages or ()]
    tools = [as_tool(tool) for tool in body.tools or ()]
    format_ = chosen_format(request, model, body.format, turns, tools)
    return RenderedConversation(format_, turns, tools=tools, ending=ending)
