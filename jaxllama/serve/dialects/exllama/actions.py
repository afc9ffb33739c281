"""The WebSocket protocol of ExLlama's example_ws: JSON messages with an action and a request id.

`estimateToken` counts tokens, `echo` answers, `leftTrim` keeps the end of a text, `oneShotInfer`
continues a text, and any other action continues it as a stream. The actions of one connection run
at the same time, and end with it.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.limits import check_count
from jaxllama.request import Event
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.decode import convert
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.sockets import JsonSocket
from jaxllama.serve.unknown import join_names
from jaxllama.service import Ask, Caller, GenerationService, Model

ROOT = Endpoint("GET", "/", "ExLlama's WebSocket, where its example has it", answer=str)
SOCKET = Endpoint("GET", "/exllama/ws", "ExLlama's WebSocket", answer=str)

END = "</s>"  # in the last message of a stream
DEFAULTS = {
    "temperature": 0.95,
    "top_k": 40,
    "top_p": 0.65,
    "top_p_strict": True,
    "repetition_penalty": 1.15,
    "repetition_window": 256,
    "repetition_decay": 128,
}
NAMES = {
    "max_tokens": "maxNew",
    "temperature": "temp",
    "repetition_penalty": "rep_pen",
    "stop": "stopToken",
}


class WsRequest(msgspec.Struct, kw_only=True):
    """A message of the client."""

    action: str
    request_id: Any = None
    text: str = ""
    max_new: int | None = msgspec.field(name="maxNew", default=None)
    top_p: float | None = None
    top_k: int | None = None
    temp: float | None = None
    rep_pen: float | None = None
    stop_token: str | None = msgspec.field(name="stopToken", default=None)  # commas between them
    desired_len: int | None = msgspec.field(name="desiredLen", default=None)


class WsReply(msgspec.Struct, omit_defaults=True, rename={"util_context": "utilContext"}):
    """A message of the server; `response` of a stream is all text so far."""

    action: str
    request_id: Any
    response: str | int | None = None
    util_context: int | None = None  # tokens of prompt and answer so far
    error: str | None = None
    ignored: str | None = None  # names of unknown fields


async def serve_actions(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Serve a WebSocket: run the actions that the client sends until it disconnects."""
    socket = JsonSocket(request)
    actions = ActionConnection(request, service, socket)
    await socket.open()
    try:
        async for message in socket.messages():
            await actions.receive(message)
    finally:
        await actions.close()
    return socket.response


@dataclass
class WsProgress:
    """The text of an answer so far, and how many tokens prompt and answer have."""

    text: str = ""
    tokens: int = 0

    def add(self, event: Event) -> bool:
        """Add the text and the token of an event; say whether it has text."""
        self.text += event.text
        self.tokens += hasattr(event, "token")
        return bool(event.text)


class ActionConnection:
    """The actions of one connection."""

    def __init__(
        self, request: web.Request, service: GenerationService, socket: JsonSocket
    ) -> None:
        self._request, self._service, self._socket = request, service, socket
        self._running: set[asyncio.Task[None]] = set()

    async def receive(self, message: dict[str, Any] | JaxLlamaError) -> None:
        """Start the action of a message as a task; reply with an error if it is malformed.

        `message` is a JaxLlamaError if the received text was no JSON object.
        """
        action, id_ = "", None
        try:
            if isinstance(message, JaxLlamaError):
                raise message
            id_ = message.get("request_id")
            action = str(message.get("action", ""))[:100]
            strict = self._request.app[SETTINGS].strict
            found = convert(message, WsRequest, (), strict=strict)
            if found.ignored:
                names = join_names(found.ignored)
                await self._socket.send(WsReply(action, id_, ignored=names))
            check_count("conversations", len(self._running) + 1)
            task = asyncio.create_task(self._run(found.body))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        except JaxLlamaError as error:
            await self._socket.send(WsReply(action, id_, error=str(error)))

    async def close(self) -> None:
        """Cancel all running actions and wait for their end."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, asked: WsRequest) -> None:
        """Run the action that a client's message asks for, and send its replies."""
        try:
            match asked.action:
                case "echo":
                    await self._socket.send(WsReply("echo", asked.request_id))
                case "estimateToken":
                    count = len(await self._ids(asked.text))
                    await self._socket.send(WsReply(asked.action, asked.request_id, count))
                case "leftTrim":
                    text = await self._trimmed(asked)
                    await self._socket.send(WsReply(asked.action, asked.request_id, text))
                case _:
                    await self._infer(asked, streams=asked.action != "oneShotInfer")
        except JaxLlamaError as error:
            reply = WsReply(asked.action[:100], asked.request_id, error=str(error))
            await self._socket.send(reply)
        except ConnectionError:
            return

    async def _infer(self, asked: WsRequest, *, streams: bool) -> None:
        """Continue the text of a message, and send the continuation.

        It is sent when it is complete; with `streams`, also each time it grows.
        """
        model = self._service.model
        ask = Ask(
            prompts=[asked.text],
            knobs=with_defaults(model, knobs_of(asked), DEFAULTS),
            total=model.engine.config.context,
            names=NAMES,
        )
        own = self._request[CALLER]
        caller = Caller(client=own.client, route=own.route)
        action, id_ = asked.action[:100], asked.request_id
        async with self._service.open(ask, caller) as answers:
            so_far = WsProgress(tokens=len(answers.requests[0].prompt))
            while events := await answers.next_events():
                has_text = [so_far.add(event) for _, event in events]
                if streams and any(has_text):
                    await self._socket.send(WsReply(action, id_, so_far.text, so_far.tokens))
        last = so_far.text + (END if streams else "")
        await self._socket.send(WsReply(action, id_, last, so_far.tokens))

    async def _ids(self, text: str) -> list[int]:
        return await self._service.off_loop(
            lambda model: model.intake.ids(text, fits=False), self._request[CALLER], size=len(text)
        )

    async def _trimmed(self, asked: WsRequest) -> str:
        """Return the end of the text in a client's message: its last `desiredLen` tokens."""
        length = asked.desired_len
        if length is None or length < 0:
            raise InvalidParameter(
                f"desiredLen is {length}; expected a number of tokens", "desiredLen"
            )

        def work(model: Model) -> str:
            ids = model.intake.ids(asked.text, fits=False)
            return model.intake.tokenizer.decode(ids[len(ids) - min(length, len(ids)) :])

        size = len(asked.text)
        return await self._service.off_loop(work, self._request[CALLER], size=size)


def knobs_of(asked: WsRequest) -> dict[str, Any]:
    """Return the sampling knobs that a client's message sets."""
    stops = [each for each in (asked.stop_token or "").split(",") if each]
    return {
        "max_tokens": asked.max_new,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "temperature": asked.temp,
        "repetition_penalty": asked.rep_pen,
        "stop": stops or None,
    }
