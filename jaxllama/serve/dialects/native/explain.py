"""`/explain`: a short answer, and what each sampler did to each of its tokens.

Generates like a completion or a chat, looks at the logits again, and replays them; with `what_if`
once more under other numbers. A replay keeps a core busy, so there is one at a time.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.explain import Position, check_changes, replay_by_and_by
from jaxllama.limits import LIMITS
from jaxllama.recording import Recording, check_recordable, logits_behind, recording_of
from jaxllama.request import Token
from jaxllama.serve.dialects.openai.chat import as_turn
from jaxllama.serve.dialects.openai.chat_shapes import Turn
from jaxllama.serve.endpoints import Body, Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.answers import Answers

USUAL, MOST = 16, 64  # tokens that are explained


class ExplainBody(Body):
    """A prompt or a conversation to go on with; `what_if` are other numbers to draw with."""

    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None
    format: str | None = None  # name of an installed prompt format
    what_if: dict[str, int | float | bool] | None = None


class Explanation(msgspec.Struct):
    """An answer token by token; under other numbers, too, if those were given.

    `chance` is the uniform number that decides a draw. Every token follows the recorded ones, also
    where other numbers would have drawn another before it.
    """

    model: str
    text: str
    seed: int
    positions: list[Position]
    what_if: list[Position] | None = None


EXPLAIN = Endpoint(
    "POST",
    "/explain",
    "What each sampler did to each token of a short answer, and what other numbers would do",
    body=ExplainBody,
    answer=Explanation,
    takes_knobs=True,
    bounds={
        "max_tokens": replace(
            LIMITS["max_tokens"], high=MOST, help=f"most tokens to generate (default: {USUAL})"
        )
    },
)


async def explain(request: web.Request, service: GenerationService) -> web.Response:
    """Which sampler did what to a token."""
    body, knobs = await EXPLAIN.read(request, service, ExplainBody)
    changes = body.what_if or {}
    check(knobs, changes, service.model)
    messages = None if body.messages is None else [as_turn(turn) for turn in body.messages]
    prompts = [] if body.prompt is None else [body.prompt]
    knobs["max_tokens"] = knobs.get("max_tokens") or USUAL
    ask = Ask(prompts=prompts, messages=messages, knobs=knobs, format=body.format)
    async with service.open(ask, request[CALLER]) as answers:
        text, recording = await recorded(answers, service)
        positions = await replayed(recording, {}, answers, service)
        others = await replayed(recording, changes, answers, service) if changes else None
    return one_json(Explanation(service.model.name, text, recording.seed, positions, others))


def check(knobs: Mapping[str, Any], changes: Mapping[str, object], model: Model) -> None:
    """Refuse what cannot be explained before anything is computed."""
    tokens = knobs.get("max_tokens")
    if isinstance(tokens, int) and tokens > MOST:
        raise InvalidParameter(
            f"max_tokens is {tokens}; at most {MOST} tokens are explained", "max_tokens"
        )
    if knobs.get("logprobs") is not None:
        raise InvalidParameter(
            "logprobs is for completions and chats; an explanation says more: leave it away",
            "logprobs",
        )
    try:
        check_changes(changes, model.intake.bank)
    except InvalidParameter as error:
        error.field = f"what_if.{error.field}"
        raise


async def recorded(answers: Answers, service: GenerationService) -> tuple[str, Recording]:
    """The whole text, and the logits of each of its tokens."""
    (request,) = answers.requests
    check_recordable(request)
    events = [event async for _, event in answers]
    tokens = [event.token for event in events if isinstance(event, Token)]
    question = partial(logits_behind, request=request, tokens=tokens)
    logits = await answers.unless_over(asyncio.ensure_future(service.ask_engine(question)))

    def keep(model: Model) -> Recording:
        return recording_of(model.intake, request, tokens, logits)

    return "".join(event.text for event in events), await service.off_loop(keep)


async def replayed(
    recording: Recording,
    changes: Mapping[str, object],
    answers: Answers,
    service: GenerationService,
) -> list[Position]:
    """Every position, one by one, so that whoever leaves is not worked for any longer."""

    async def replay() -> list[Position]:
        async with service.one_at_a_time:
            positions = await service.off_loop(
                lambda model: replay_by_and_by(recording, model.intake.bank.samplers, changes)
            )
            found: list[Position] = []
            while one := await service.off_loop(lambda _: next(positions, None)):
                found.append(one)
            return found

    return await answers.unless_over(asyncio.ensure_future(replay()))
