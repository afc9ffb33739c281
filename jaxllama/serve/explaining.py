"""Explaining: the effect of each sampler on each token of one finished answer.

Used by the dialects if a client sets `explain`. Computes the logits again and replays the samplers;
a replay keeps a core busy, so it runs as dear work. Knows no dialect's JSON.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jaxllama.errors import InvalidParameter
from jaxllama.explain import Position, replay_in_server
from jaxllama.recording import Recording, make_recording, peek_at_answer
from jaxllama.request import Event, Token
from jaxllama.service import GenerationService, Model, Question
from jaxllama.service.answers import Answers, Caller

MOST = 64  # most tokens to explain


def check_length(knobs: Mapping[str, Any]) -> None:
    """Raise InvalidParameter if the request's knobs (parameters) ask for too long an answer.

    At most MOST tokens can be explained, so `max_tokens` must not be higher.
    """
    tokens = knobs.get("max_tokens")
    if isinstance(tokens, int) and tokens > MOST:
        raise InvalidParameter(
            f"max_tokens is {tokens}; at most {MOST} tokens are explained", "max_tokens"
        )


async def record_answer(
    answers: Answers, events: Sequence[Event], service: GenerationService
) -> Recording:
    """Return a recording of a finished answer, with the logits of each of its tokens.

    `answers` has only this answer, and `events` are all its events. The work stops, with an error,
    if the client leaves.
    """
    (request,) = answers.requests
    tokens = [event.token for event in events if isinstance(event, Token)]
    begin = partial(peek_at_answer, request=request, tokens=tokens)
    question = Question(begin, len(request.prompt) + len(tokens))
    asking = service.ask_engine([question], answers.caller)
    (logits,) = await answers.wait_for(asyncio.ensure_future(asking))

    def keep(model: Model) -> Recording:
        return make_recording(model.intake, request, tokens, logits)

    return await service.off_loop(keep, answers.caller)


async def replay_positions(
    recording: Recording,
    changes: Mapping[str, object],
    answers: Answers,
    service: GenerationService,
    *,
    only: int | None = None,
    top: int = 0,
) -> list[Position]:
    """Draw recorded tokens again from their logits; return for each token what each sampler did.

    `changes` are knobs (parameters) that replace those of the recording, `only` is the index of the
    one token to draw (None: all), `top` is the number of likeliest tokens to list after each
    sampler. `answers` is the request in progress: if its client leaves, the work stops with an
    error.
    """
    replay = replay_recording(recording, changes, answers.caller, service, only=only, top=top)
    return await answers.wait_for(asyncio.ensure_future(replay))


async def replay_recording(
    recording: Recording,
    changes: Mapping[str, object],
    caller: Caller,
    service: GenerationService,
    *,
    only: int | None = None,
    top: int = 0,
) -> list[Position]:
    """Draw recorded tokens again from their logits; return for each token what each sampler did.

    `changes` are knobs (parameters) that replace those of the recording, `only` is the index of the
    one token to draw (None: all), `top` is the number of likeliest tokens to list after each
    sampler. Each token is a separate piece of work of `caller` in a thread, so that other clients'
    work can run in between.
    """

    def begin(model: Model) -> Iterator[Position | None]:
        samplers = model.intake.bank.samplers
        return replay_in_server(recording, samplers, changes, only=only, top=top)

    positions = await service.off_loop(begin, caller, is_dear=True)
    end, found = object(), []
    while (
        one := await service.off_loop(lambda _: next(positions, end), caller, is_dear=True)
    ) is not end:
        if isinstance(one, Position):
            found.append(one)
    return found
