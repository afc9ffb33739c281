"""GET /ws of Rama's API, which Rama had planned: a chat over a WebSocket.

Messages of the client: `{"type": "message", "conversation": NAME, "content": TEXT}` with any knobs
beside them, and `stop` or `forget` with the name of a conversation. Messages of the server:
`token` with a text, `done` with a reason, `error`, and `note` about fields without effect. Each has
the name of its conversation; several conversations of a connection run at a time. When one fills
the context, its oldest turns are left out, unless `context_overflow` says otherwise.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.limits import check_count
from jaxllama.messages import ContextOverflow
from jaxllama.request import Finished, FinishReason
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.decode import convert
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.sockets import JsonSocket
from jaxllama.serve.unknown import join_names
from jaxllama.service import Ask, Caller, GenerationService

CHATTING = Endpoint(
    "GET",
    "/ws",
    "Chat over a WebSocket: messages in, tokens out, several conversations",
    answer=str,
)


class ChatRequest(msgspec.Struct, kw_only=True):
    """A message of the client."""

    type: Literal["message", "stop", "forget"]
    conversation: str = ""
    content: str | None = None
    system: str | None = None  # of the first message of a conversation
    context_overflow: ContextOverflow = ContextOverflow.DROP_OLDEST


class ChatEvent(msgspec.Struct, omit_defaults=True):
    """A message of the server."""

    type: Literal["token", "done", "error", "note"]
    conversation: str
    text: str = ""
    reason: str = ""
    message: str = ""
    dropped: int = 0  # messages left out of the prompt of a finished answer


@dataclass
class RamaConversation:
    """The messages of a conversation, and the task that answers the last one."""

    messages: list[dict[str, str]] = field(default_factory=list)
    answering: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being generated."""
        return self.answering is not None and not self.answering.done()


class RamaChatting:
    """The handler of the WebSocket."""

    def __init__(self, knobs: Mapping[str, Any]) -> None:
        self._knobs = knobs

    async def serve(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Serve GET /ws, a WebSocket: answer the client's messages until it disconnects."""
        socket = JsonSocket(request)
        chat = ChatConnection(request, service, socket, self._knobs)
        await socket.open()
        try:
            async for message in socket.messages():
                await chat.receive(message)
        finally:
            await chat.close()
        return socket.response


class ChatConnection:
    """The conversations of one connection."""

    def __init__(
        self,
        request: web.Request,
        service: GenerationService,
        socket: JsonSocket,
        knobs: Mapping[str, Any],
    ) -> None:
        self._request, self._service, self._socket = request, service, socket
        self._knobs = knobs
        self._conversations: dict[str, RamaConversation] = {}

    async def receive(self, message: dict[str, Any] | JaxLlamaError) -> None:
        """Do what a message of the client asks: continue, stop or forget a conversation.

        `message` is the JSON object that the client sent; or an error, if it sent no JSON object.
        Errors are sent to the client. An answer is generated in the background.
        """
        name = ""
        try:
            if isinstance(message, JaxLlamaError):
                raise message
            given = message.get("conversation", "")
            name = given if isinstance(given, str) else ""
            strict = self._request.app[SETTINGS].strict
            model = self._service.model
            found = convert(message, ChatRequest, model.knobs, strict=strict)
            if found.ignored:
                note = f"unknown fields are ignored: {join_names(found.ignored)}"
                await self._socket.send(ChatEvent("note", name, message=note))
            await self._act(found.body, found.knobs)
        except JaxLlamaError as error:
            await self._socket.send(ChatEvent("error", name, message=str(error)))

    async def close(self) -> None:
        """Cancel all running answers and wait for their end."""
        tasks = [one.answering for one in self._conversations.values() if one.answering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _act(self, asked: ChatRequest, knobs: dict[str, Any]) -> None:
        name = asked.conversation
        conversation = self._conversations.get(name)
        if asked.type != "message":
            if conversation is None:
                raise InvalidParameter(f"there is no conversation {name[:100]!r}", "conversation")
            if conversation.answering is not None:
                conversation.answering.cancel()
                await asyncio.gather(conversation.answering, return_exceptions=True)
            if asked.type == "forget":
                del self._conversations[name]
            return
        if asked.content is None:
            raise InvalidParameter("content is missing; send the text of the message", "content")
        if conversation is None:
            check_count("conversations", len(self._conversations) + 1)
            conversation = self._conversations[name] = RamaConversation()
            if asked.system:
                conversation.messages.append({"role": "system", "content": asked.system})
        if conversation.is_busy:
            raise InvalidParameter(
                f"conversation {name[:100]!r} is being answered; stop it first", "conversation"
            )
        conversation.messages.append({"role": "user", "content": asked.content})
        answer = self._answer(name, conversation, knobs, asked.context_overflow)
        conversation.answering = asyncio.create_task(answer)
        await asyncio.sleep(0)  # it begins now: a task cancelled before that sends no end

    async def _answer(
        self,
        name: str,
        conversation: RamaConversation,
        knobs: dict[str, Any],
        overflow: ContextOverflow,
    ) -> None:
        """Send the client an answer to a conversation, and append the answer to the conversation.

        If the answer is stopped, its text so far is appended. `name` is the client's name for the
        conversation, `knobs` are the client's generation parameters. `overflow` says what happens
        if the conversation does not fit into the context.
        """
        own = self._request[CALLER]
        caller = Caller(client=own.client, route=own.route)
        ask = Ask(
            messages=list(conversation.messages),
            knobs=with_defaults(self._service.model, knobs, self._knobs),
            total=self._service.model.engine.config.context,
            overflow=overflow,
        )
        texts: list[str] = []
        is_refused = False
        try:
            async with self._service.open(ask, caller) as answers:
                async for _, event in answers:
                    if event.text:
                        texts.append(event.text)
                        await self._socket.send(ChatEvent("token", name, event.text))
                    if isinstance(event, Finished):
                        is_cut = event.reason is FinishReason.LENGTH
                        reason = "length" if is_cut else "stop"
                        dropped = event.usage.dropped
                        end = ChatEvent("done", name, reason=reason, dropped=dropped)
                        await self._socket.send(end)
        except JaxLlamaError as error:
            is_refused = not texts  # such as a message that does not fit: it is forgotten
            await self._socket.send(ChatEvent("error", name, message=str(error)))
        except asyncio.CancelledError:
            if not self._socket.response.closed:
                await self._socket.send(ChatEvent("done", name, reason="stopped"))
            raise
        except ConnectionError:
            return
        finally:
            if is_refused:
                conversation.messages.pop()
            else:
                conversation.messages.append({"role": "assistant", "content": "".join(texts)})
