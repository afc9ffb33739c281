"""Replies in a session of ExLlama's web UI: who speaks next, the text before it, and its end.

With no participants the text is continued freely; with two, the bot answers the user; with more,
the model chooses the next speaker among those who have not spoken in this round.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from jaxllama.request import Event, Finished, FinishReason
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.dialects.exllama.sessions import ExLlamaSession, SessionBlock
from jaxllama.service import Ask, Caller, GenerationService, Model

STEP = 256  # tokens of the history that are left out at a time
NAME_TOKENS = 64  # most tokens of a participant's name


class SessionPacket(msgspec.Struct, omit_defaults=True):
    """One line of the stream of a reply."""

    cmd: str
    uuid: str | UnsetType = UNSET
    author: str | UnsetType = UNSET
    author_idx: int | UnsetType = UNSET
    init_text: str | UnsetType = UNSET
    text: str | UnsetType = UNSET


class SessionSpeech:
    """One reply of the model, or of several participants in turn, to a user's input."""

    def __init__(self, session: ExLlamaSession, service: GenerationService, caller: Caller) -> None:
        self._session, self._service, self._caller = session, service, caller
        self._opening: list[SessionPacket] = []  # not sent yet

    async def reply(self, text: str) -> AsyncIterator[list[SessionPacket]]:
        """Add the user's input to the history, and yield the replies as packets for the stream.

        If `text` is empty, nothing is added, and the model replies to the history so far. Nothing
        is yielded before the first reply is queued, so an error until then can still become a
        response with an HTTP status.
        """
        session = self._session
        self._opening = [SessionPacket("begin_stream")]
        user = session.participants[0] if session.participants else None
        if text:
            self._opening.append(packet_of(session.add(user, text), session))
        session.check()
        waiting: list[str | None] = [*session.participants[1:]]
        if user is None or not waiting:
            async for packets in self._speak(None if user is None else user):
                yield packets
            return
        bots = len(waiting)
        while waiting:
            speaker = await self._next_speaker(waiting, is_first=len(waiting) == bots)
            if speaker == user:
                return
            waiting.remove(speaker)
            async for packets in self._speak(speaker):
                yield packets

    async def _speak(self, author: str | None) -> AsyncIterator[list[SessionPacket]]:
        """Generate a message of a participant, and yield it as packets for the stream.

        `author` is the participant's name; None: text without an author. If the context is full
        before the reply has ended, the reply continues with a shorter history. On errors the text
        so far is kept.
        """
        left, block = self._session.max_response_tokens, None
        while left > 0:
            room = left if block is None else min(left, self._session.chunk_size)
            ids = await self._prompt(author, block, room)
            total = self._service.model.engine.config.context
            ask = Ask(prompts=[ids], knobs=self._knobs(left), total=total)
            async with self._service.open(ask, self._caller) as answers:
                if block is None:
                    block = self._session.add(author, "")
                    yield [*self._opening, packet_of(block, self._session)]
                    self._opening = []
                async for _, event in answers:
                    text = self._shown(event, block)
                    if text:
                        block.text += text
                        yield [SessionPacket("append", text=text)]
                    if isinstance(event, Finished):
                        left -= event.usage.generated
                        if event.reason is not FinishReason.LENGTH:
                            return

    def _shown(self, event: Event, block: SessionBlock) -> str:
        """Return the text of an event, without the space that begins a participant's message.

        `block` is the message to which the text is added.
        """
        is_begin = block.author is not None and not block.text
        return event.text.lstrip(" ") if is_begin else event.text

    async def _next_speaker(self, waiting: Sequence[str | None], *, is_first: bool) -> str:
        """Let the model choose which participant speaks next, and return the name.

        The choice is among the names in `waiting` (None is skipped) and the user. If nobody has
        replied yet (`is_first`), the user cannot be chosen.
        """
        user = self._session.participants[0]
        names = [name for name in waiting if name is not None]
        names += [] if is_first else [user]
        if len(names) == 1:
            return names[0]
        ids = await self._prompt(None, None, NAME_TOKENS)
        choices = {f"{name}:": name for name in names}
        knobs = {"choices": list(choices), "max_tokens": NAME_TOKENS}
        ask = Ask(prompts=[ids], knobs=knobs, total=self._service.model.engine.config.context)
        async with self._service.open(ask, self._caller) as answers:
            chosen = "".join([event.text async for _, event in answers])
        return choices.get(chosen.strip(), names[0])

    async def _prompt(self, author: str | None, block: SessionBlock | None, room: int) -> list[int]:
        """Return the token ids of the prompt for the next text of a participant.

        `author` is the participant's name; None: no name is put before the text. Old history is
        left out to leave `room` tokens for the answer. `block` is the message that is being
        written; None if it has no text yet.
        """
        fixed = self._session.fixed_prompt.text.strip()
        before = f"{fixed}\n" if fixed and self._session.keep_fixed_prompt else ""
        past = [each for each in self._session.history if each is not block]
        begun = "" if block is None else block.text
        if self._session.participants:
            head = "" if author is None else f"{author}:" + (f" {begun}" if begun else "")
            after = "".join(map(line_of, past)) + head
        else:
            after = "".join(each.text for each in past) + begun
        if fixed and not before:
            after = f"{fixed}\n{after}"

        def read(model: Model) -> list[int]:
            most = model.intake.engine.context
            kept = model.intake.ids(before, fits=False) if before else []
            tokens = model.intake.tokenizer.encode(after, begin=None if not kept else False)
            spare = most - min(room, most // 2) - len(kept)
            return [*kept, *shortened(tokens, max(spare, 1))]

        size = len(before) + len(after)
        return await self._service.off_loop(read, self._caller, size=size)

    def _knobs(self, left: int) -> dict[str, Any]:
        """Return the sampling knobs of the session's settings, with max_tokens `left`."""
        session = self._session
        stops = ["\n"] if session.break_on_newline else []
        for name in session.participants if not stops else ():
            stops += [f"\n{name}:", f"\n {name}:"]
        defaults = {
            "temperature": session.temperature,
            "top_p": session.top_p or 1.0,
            "top_p_strict": True,
            "min_p": session.min_p,
            "top_k": session.top_k,
            "typical_p": session.typical or 1.0,
            "typical_p_strict": True,
            "repetition_penalty": session.token_repetition_penalty_max,
            "repetition_window": session.token_repetition_penalty_sustain,
            "repetition_decay": session.token_repetition_penalty_decay,
            "max_tokens": left,
            "stop": stops or None,
        }
        return with_defaults(self._service.model, {}, defaults)


def shortened(tokens: list[int], most: int) -> list[int]:
    """Return the newest `tokens`, at most `most`; the oldest are dropped in multiples of STEP."""
    if len(tokens) <= most:
        return tokens
    steps = -(-(len(tokens) - most) // STEP)
    return tokens[steps * STEP :] or tokens[-most:]


def line_of(block: SessionBlock) -> str:
    """Return a message as a line of the prompt, after the name of its author."""
    return f"{block.text}\n" if block.author is None else f"{block.author}: {block.text}\n"


def packet_of(block: SessionBlock, session: ExLlamaSession) -> SessionPacket:
    """Return the stream packet that begins a message, with the text that it already has."""
    if block.author is None:
        return SessionPacket("begin_block", uuid=block.uuid, init_text=block.text or UNSET)
    names = session.participants
    return SessionPacket(
        "begin_block",
        uuid=block.uuid,
        author=block.author,
        author_idx=names.index(block.author) if block.author in names else UNSET,
        init_text=block.text or UNSET,
    )
