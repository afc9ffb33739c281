"""The routes of ExLlama's web UI, below /api: sessions, their settings, and replies.

Each client has a current session. Clients with API keys have folders of their own; without keys
all sessions are in one folder, as in ExLlama.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.limits import check
from jaxllama.serve.dialects.exllama.sessions import (
    MOST_PARTICIPANTS,
    ExLlamaSession,
    SessionBlock,
    settings_of,
)
from jaxllama.serve.dialects.exllama.shelf import OpenSession, SessionShelf, SessionShelves
from jaxllama.serve.dialects.exllama.speaking import SessionPacket, SessionSpeech
from jaxllama.serve.endpoints import Endpoint, RequestShape, Serves
from jaxllama.serve.keys import CALLER
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import JSON_LINES, ResponseStream, one_json
from jaxllama.service import GenerationService

LINES = replace(JSON_LINES, content_type="application/json")
NEW = "."  # the name that asks for a new session
MOST_CLIENTS = 256  # whose current session is remembered


class SessionResult(msgspec.Struct, omit_defaults=True):
    """Whether a change was made, and why not."""

    result: Literal["ok", "fail"]
    error: str | None = None
    field: str | None = None


class PopulateBlock(msgspec.Struct, omit_defaults=True):
    """A block of the history, with the place of its author."""

    author: str | None
    text: str
    uuid: str
    author_idx: int | None = None


class PopulateAnswer(msgspec.Struct):
    """All that the web UI shows."""

    sessions: list[str]
    current_session: str
    fixed_prompt: str
    keep_fixed_prompt: bool
    participants: list[str]
    history: list[PopulateBlock]
    temperature: float
    top_p: float
    min_p: float
    top_k: int
    typical: float
    break_on_newline: bool
    max_response_tokens: int
    chunk_size: int
    token_repetition_penalty_max: float
    token_repetition_penalty_sustain: int
    token_repetition_penalty_decay: int
    max_seq_len: int
    model_info: str


class EditBlockBody(RequestShape, kw_only=True):
    """A block and its new text."""

    uuid: str
    text: str


class DeleteBlockBody(RequestShape, kw_only=True):
    """A block to delete."""

    uuid: str


class AppendBlockBody(RequestShape, kw_only=True):
    """A text to append; without an author, the first participant said it."""

    text: str
    author: str | None = None


class RenameSessionBody(RequestShape, kw_only=True):
    """The new name of the current session."""

    new_name: str


class DeleteSessionBody(RequestShape, kw_only=True):
    """A session to delete."""

    session: str


class SetSessionBody(RequestShape, kw_only=True):
    """The session to use from now on; "." makes a new one."""

    session_name: str


class SetParticipantsBody(RequestShape, kw_only=True):
    """The participants, the user first; without any, the text is continued freely."""

    participants: list[str]


class SetFixedPromptBody(RequestShape, kw_only=True):
    """The text before the history, and whether it stays when the history is shortened."""

    fixed_prompt: str
    keep_fixed_prompt: bool


class SetGenSettingsBody(RequestShape, kw_only=True):
    """Settings of the replies."""

    temperature: float
    top_p: float
    min_p: float
    top_k: int
    typical: float
    gen_endnewline: bool
    max_response_tokens: int
    chunk_size: int
    token_repetition_penalty_max: float
    token_repetition_penalty_sustain: int
    token_repetition_penalty_decay: int


class UserInputBody(RequestShape, kw_only=True):
    """The user's input; without it, the others continue."""

    user_input: str


def endpoint(name: str, summary: str, body: type[RequestShape]) -> Endpoint:
    """Return the endpoint POST /api/NAME that changes a session.

    `summary` describes it without a full stop; `body` is the type of its request.
    """
    return Endpoint(
        "POST",
        f"/api/{name}",
        f"{summary}, in ExLlama's form",
        body=body,
        answer=SessionResult,
        uses=Uses.NOTHING,
    )


POPULATE = Endpoint(
    "GET", "/api/populate", "The current session, in ExLlama's form", answer=PopulateAnswer
)
EDIT_BLOCK = endpoint("edit_block", "Change a block", EditBlockBody)
DELETE_BLOCK = endpoint("delete_block", "Delete a block", DeleteBlockBody)
APPEND_BLOCK = endpoint("append_block", "Append a block", AppendBlockBody)
RENAME_SESSION = endpoint("rename_session", "Rename the session", RenameSessionBody)
DELETE_SESSION = endpoint("delete_session", "Delete a session", DeleteSessionBody)
SET_SESSION = endpoint("set_session", "Change to a session", SetSessionBody)
SET_PARTICIPANTS = endpoint("set_participants", "Set who takes part", SetParticipantsBody)
SET_FIXED_PROMPT = endpoint("set_fixed_prompt", "Set the fixed prompt", SetFixedPromptBody)
SET_GEN_SETTINGS = endpoint("set_gen_settings", "Set the sampling", SetGenSettingsBody)
USER_INPUT = Endpoint(
    "POST",
    "/api/userinput",
    "Say something and get the replies, in ExLlama's form",
    body=UserInputBody,
    answer=None,
    events=(SessionPacket,),
    framing=LINES,
)


@dataclass
class SessionClient:
    """A client of the web UI, and its current session."""

    shelf: SessionShelf
    current: OpenSession | None = None

    async def get(self) -> OpenSession:
        """Return the client's current session; if it has none, open the one that was used last."""
        if self.current is None or self.current.is_deleted:
            self.current = await self.shelf.last()
        return self.current


class SessionRoutes:
    """The handlers, and the current sessions of the clients."""

    def __init__(self, shelves: SessionShelves) -> None:
        self._shelves = shelves
        self._clients: OrderedDict[str, SessionClient] = OrderedDict()

    @property
    def endpoints(self) -> dict[Endpoint, Serves]:
        """The endpoints, each with the function that answers its requests."""
        return {
            POPULATE: self.populate,
            EDIT_BLOCK: self.edit_block,
            DELETE_BLOCK: self.delete_block,
            APPEND_BLOCK: self.append_block,
            RENAME_SESSION: self.rename_session,
            DELETE_SESSION: self.delete_session,
            SET_SESSION: self.set_session,
            SET_PARTICIPANTS: self.set_participants,
            SET_FIXED_PROMPT: self.set_fixed_prompt,
            SET_GEN_SETTINGS: self.set_gen_settings,
            USER_INPUT: self.reply,
        }

    async def populate(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /api/populate with the current session, and the names of all sessions."""
        client, model = self._client(request), service.model
        async with client.shelf.lock:
            current = await client.get()
            names = await client.shelf.names()
        session = current.session
        return one_json(
            PopulateAnswer(
                sessions=names,
                current_session=current.name,
                fixed_prompt=session.fixed_prompt.text,
                keep_fixed_prompt=session.keep_fixed_prompt,
                participants=session.participants,
                history=[populated(block, session.participants) for block in session.history],
                **settings_of(session),
                max_seq_len=model.engine.config.context,
                model_info=f"{model.name}, {model.engine.config.context} tokens",
            )
        )

    async def edit_block(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /api/edit_block: change the text of one message of the current session."""
        body, _ = await EDIT_BLOCK.read(request, service, EditBlockBody)

        def change(session: ExLlamaSession) -> None:
            session.find(body.uuid).text = body.text

        return await self._change(request, change)

    async def delete_block(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /api/delete_block: delete one message of the current session."""
        body, _ = await DELETE_BLOCK.read(request, service, DeleteBlockBody)

        def change(session: ExLlamaSession) -> None:
            session.find(body.uuid)
            session.history = [each for each in session.history if each.uuid != body.uuid]

        return await self._change(request, change)

    async def append_block(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /api/append_block: append a message to the current session."""
        body, _ = await APPEND_BLOCK.read(request, service, AppendBlockBody)

        def change(session: ExLlamaSession) -> None:
            names = session.participants
            author = body.author if body.author is not None else (names[0] if names else None)
            session.add(author, body.text)

        return await self._change(request, change)

    async def set_participants(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer POST /api/set_participants: replace the participants of the current session."""
        body, _ = await SET_PARTICIPANTS.read(request, service, SetParticipantsBody)
        names = [name.strip() for name in body.participants]
        if len(names) > MOST_PARTICIPANTS or len(set(names)) < len(names) or not all(names):
            raise InvalidParameter(
                f"participants has {len(names)} names; expected at most {MOST_PARTICIPANTS}, "
                f"each once and not empty",
                "participants",
            )
        return await self._change(request, lambda session: set_names(session, names))

    async def set_fixed_prompt(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer POST /api/set_fixed_prompt: set the text before the history of the session."""
        body, _ = await SET_FIXED_PROMPT.read(request, service, SetFixedPromptBody)

        def change(session: ExLlamaSession) -> None:
            session.fixed_prompt.text = body.fixed_prompt
            session.keep_fixed_prompt = body.keep_fixed_prompt

        return await self._change(request, change)

    async def set_gen_settings(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer POST /api/set_gen_settings: replace the sampling settings of the session."""
        body, _ = await SET_GEN_SETTINGS.read(request, service, SetGenSettingsBody)
        check("temperature", body.temperature)
        check("max_tokens", body.max_response_tokens)

        def change(session: ExLlamaSession) -> None:
            for name in body.__struct_fields__:
                own = "break_on_newline" if name == "gen_endnewline" else name
                setattr(session, own, getattr(body, name))

        return await self._change(request, change)

    async def rename_session(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer POST /api/rename_session: give the current session a new name."""
        body, _ = await RENAME_SESSION.read(request, service, RenameSessionBody)
        client = self._client(request)
        async with client.shelf.lock:
            await client.shelf.rename(await client.get(), body.new_name)
        return one_json(SessionResult("ok"))

    async def delete_session(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer POST /api/delete_session: delete a session.

        If it is the client's current session, a new one becomes the current one.
        """
        body, _ = await DELETE_SESSION.read(request, service, DeleteSessionBody)
        client = self._client(request)
        async with client.shelf.lock:
            current = await client.get()
            await client.shelf.delete(body.session)
            if current.is_deleted:
                client.current = await client.shelf.create()
        return one_json(SessionResult("ok"))

    async def set_session(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /api/set_session: open a saved or a new session as the current session."""
        body, _ = await SET_SESSION.read(request, service, SetSessionBody)
        client = self._client(request)
        async with client.shelf.lock:
            is_new = body.session_name == NEW
            shelf = client.shelf
            client.current = await (shelf.create() if is_new else shelf.open(body.session_name))
            await asyncio.to_thread(client.current.save)
        return one_json(SessionResult("ok"))

    async def reply(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Answer POST /api/userinput with a stream of the replies to the user's input.

        If the client leaves, the text so far is kept in the session.
        """
        body, _ = await USER_INPUT.read(request, service, UserInputBody)
        client = self._client(request)
        async with client.shelf.lock:
            current = await client.get()
        speech = SessionSpeech(current.session, service, request[CALLER])
        try:
            async with ResponseStream(request, LINES) as lines:
                async for packets in speech.reply(body.user_input.strip()):
                    current.announce()
                    await lines.send_all(packets)
                await lines.finish()
        finally:
            async with client.shelf.lock:
                await asyncio.shield(asyncio.to_thread(current.save))
        return lines.response

    async def _change(
        self, request: web.Request, change: Callable[[ExLlamaSession], None]
    ) -> web.Response:
        """Apply `change` to the client's current session, save it, and answer that it is done."""
        client = self._client(request)
        async with client.shelf.lock:
            await client.shelf.change(await client.get(), change)
        return one_json(SessionResult("ok"))

    def _client(self, request: web.Request) -> SessionClient:
        """Return the remembered state of the client that sent a request, making it if needed."""
        name = request[CALLER].client
        found = self._clients.setdefault(name, SessionClient(self._shelves.of(name)))
        self._clients.move_to_end(name)
        while len(self._clients) > MOST_CLIENTS:
            self._clients.popitem(last=False)
        return found


def set_names(session: ExLlamaSession, names: list[str]) -> None:
    """Replace the participants of a session by these names."""
    session.participants = names


def populated(block: SessionBlock, names: list[str]) -> PopulateBlock:
    """Convert a message of the history for the web UI, with its author's index in `names`.

    `names` are the session's participants. The index is None if the author is not among them.
    """
    index = names.index(block.author) if block.author in names and block.author else None
    return PopulateBlock(block.author, block.text, block.uuid, index)
