"""`/explain`: generates a short answer and reports the effect of each sampler on each token.

Generates like a completion or a chat, and replays the samplers (`serve/explaining.py`); with
`what_if` a second time with changed knobs. With `keep`, the logits stay on the server for a while,
and `/explain/replay` draws from them again with other knobs, without the model.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.explain import Position, check_changes
from jaxllama.limits import LIMITS
from jaxllama.recording import Recording, check_recordable
from jaxllama.request import Finished
from jaxllama.serve.answering.models import ModelBody, check_adapted
from jaxllama.serve.answering.turns import Turn, as_turn
from jaxllama.serve.endpoints import Endpoint, RequestShape, Serves
from jaxllama.serve.explaining import (
    MOST,
    check_length,
    record_answer,
    replay_positions,
    replay_recording,
)
from jaxllama.serve.keys import CALLER
from jaxllama.serve.recordings import Recordings
from jaxllama.serve.wire import one_json
from jaxllama.service import Ask, GenerationService, Model

USUAL = 16  # default of max_tokens


# Numbers, switches, texts, and lists or mappings of these: the checks of knobs decide.
Changes = dict[str, Any]


class ExplainBody(ModelBody):
    """A prompt or a conversation to continue; `what_if` has knobs for a second replay."""

    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None
    format: str | None = None  # name of an installed prompt format
    what_if: Changes | None = None
    keep: bool = False  # keep the logits for /explain/replay
    position: int | None = None  # None: all positions
    candidates: int = 0  # likeliest tokens to list after each stage


class ReplayBody(RequestShape):
    """A kept recording, and the knobs to draw with instead."""

    recording: str
    what_if: Changes | None = None
    position: int | None = None  # None: all positions
    candidates: int = 0


class Replayed(msgspec.Struct):
    """The recorded answer, drawn again."""

    recording: str
    positions: list[Position]


class Explanation(msgspec.Struct):
    """Explanation of an answer, token by token; also with the changed knobs of `what_if`.

    `chance` is the uniform random number that decides a draw. Every position follows the recorded
    tokens, even if changed knobs would have drawn a different token before it.
    """

    model: str
    text: str
    seed: int
    positions: list[Position]
    what_if: list[Position] | None = None
    drafted_tokens: int = 0  # tokens that speculation drafted for the answer
    accepted_tokens: int = 0  # of these, tokens of the answer
    recording: str | None = None  # id of the kept recording


EXPLAIN = Endpoint(
    "POST",
    "/explain",
    "Generate a short answer; report what each sampler did, and would do with other knobs",
    body=ExplainBody,
    answer=Explanation,
    takes_knobs=True,
    bounds={
        "max_tokens": replace(
            LIMITS["max_tokens"], high=MOST, help=f"most tokens to generate (default: {USUAL})"
        )
    },
)


REPLAY = Endpoint(
    "POST",
    "/explain/replay",
    "Draw a kept recording again with other knobs, without running the model",
    body=ReplayBody,
    answer=Replayed,
)


class ExplainRoutes:
    """The handlers of explanations, which share the recordings that are kept."""

    def __init__(self) -> None:
        self._recordings = Recordings()
        self.endpoints: dict[Endpoint, Serves] = {EXPLAIN: self.explain, REPLAY: self.replay}

    async def explain(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /explain: a short answer, and each sampler's effect on each token of it."""
        body, knobs = await EXPLAIN.read(request, service, ExplainBody)
        name = check_adapted(body.model, service.model, knobs)
        changes = body.what_if or {}
        check_explainable(knobs, changes, service.model)
        messages = None if body.messages is None else [as_turn(turn) for turn in body.messages]
        prompts = [] if body.prompt is None else [body.prompt]
        if knobs.get("max_tokens") is None:
            knobs["max_tokens"] = USUAL
        ask = Ask(prompts=prompts, messages=messages, knobs=knobs, format=body.format)
        async with service.open(ask, request[CALLER]) as answers:
            check_recordable(answers.requests[0])
            events = [event async for _, event in answers]
            recording = await record_answer(answers, events, service)
            only, top = body.position, body.candidates
            check_position(only, recording)
            positions = await replay_positions(recording, {}, answers, service, only=only, top=top)
            others = (
                await replay_positions(recording, changes, answers, service, only=only, top=top)
                if changes
                else None
            )
        text = "".join(event.text for event in events)
        id_ = self._recordings.keep(request[CALLER].client, recording) if body.keep else None
        usage = next(event for event in events if isinstance(event, Finished)).usage
        return one_json(
            Explanation(
                name,
                text,
                recording.seed,
                positions,
                others,
                usage.drafted,
                usage.accepted,
                id_,
            )
        )

    async def replay(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /explain/replay: sample a recorded answer's tokens again, with other knobs.

        The model does not run: the recording has the logits.
        """
        body, _ = await REPLAY.read(request, service, ReplayBody)
        changes = body.what_if or {}
        check_what_if(changes, service.model)
        recording = self._recordings.get(body.recording, request[CALLER].client)
        check_position(body.position, recording)
        positions = await replay_recording(
            recording, changes, request[CALLER], service, only=body.position, top=body.candidates
        )
        return one_json(Replayed(body.recording, positions))


def check_explainable(
    knobs: Mapping[str, Any], changes: Mapping[str, object], model: Model
) -> None:
    """Raise InvalidParameter for knobs that an explanation does not support.

    `knobs` are the request's parameters. `changes`, the field `what_if`, has the new values of
    knobs for a second sampling of the same logits.
    """
    check_length(knobs)
    if knobs.get("logprobs") is not None:
        raise InvalidParameter(
            "logprobs is for completions and chats; an explanation has them anyway: remove it",
            "logprobs",
        )
    check_what_if(changes, model)


def check_position(position: int | None, recording: Recording) -> None:
    """Raise InvalidParameter if the answer has no token at `position`; None is accepted."""
    if position is not None and position >= len(recording.tokens):
        raise InvalidParameter(
            f"position is {position}; the answer has {len(recording.tokens)} tokens, the first at "
            f"position 0",
            "position",
        )


def check_what_if(changes: Mapping[str, object], model: Model) -> None:
    """Raise InvalidParameter if `changes` has knobs that cannot change for recorded logits.

    `changes` has new values of knobs (request parameters) by name. Those of samplers,
    temperature, temperature_last and seed can change.
    """
    try:
        check_changes(changes, model.intake.bank)
    except InvalidParameter as error:
        error.field = f"what_if.{error.field}"
        raise
