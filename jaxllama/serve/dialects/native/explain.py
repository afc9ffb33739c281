"""`/explain`: generates a short answer and reports the effect of each sampler on each token.

Generates like a completion or a chat, and replays the samplers (`serve/explaining.py`); with
`what_if` a second time with changed knobs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.explain import Position, check_changes
from jaxllama.limits import LIMITS
from jaxllama.recording import check_recordable
from jaxllama.request import Finished
from jaxllama.serve.answering.models import ModelBody, check_adapted
from jaxllama.serve.answering.turns import Turn, as_turn
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.explaining import MOST, check_length, record_answer, replay_positions
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import Ask, GenerationService, Model

USUAL = 16  # default of max_tokens


class ExplainBody(ModelBody):
    """A prompt or a conversation to continue; `what_if` has knobs for a second replay."""

    prompt: str | list[int] | None = None
    messages: list[Turn] | None = None
    format: str | None = None  # name of an installed prompt format
    what_if: dict[str, int | float | bool | str] | None = None


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


async def explain(request: web.Request, service: GenerationService) -> web.Response:
    """Generate a short answer and report the effect of each sampler on each token."""
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
        positions = await replay_positions(recording, {}, answers, service)
        others = await replay_positions(recording, changes, answers, service) if changes else None
    text = "".join(event.text for event in events)
    ended = next(event for event in events if isinstance(event, Finished))
    usage = ended.usage
    return one_json(
        Explanation(name, text, recording.seed, positions, others, usage.drafted, usage.accepted)
    )


def check_explainable(
    knobs: Mapping[str, Any], changes: Mapping[str, object], model: Model
) -> None:
    """Raise InvalidParameter for knobs or changes that an explanation does not support."""
    check_length(knobs)
    if knobs.get("logprobs") is not None:
        raise InvalidParameter(
            "logprobs is for completions and chats; an explanation has them anyway: remove it",
            "logprobs",
        )
    try:
        check_changes(changes, model.intake.bank)
    except InvalidParameter as error:
        error.field = f"what_if.{error.field}"
        raise
