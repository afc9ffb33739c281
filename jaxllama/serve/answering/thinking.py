"""Thinking: the thoughts before an answer, as requests bound them and as answers show them.

Used by every dialect that shows thoughts apart from the answer. Knows no dialect's JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.messages import Ending
from jaxllama.serve.decode import note_ignored
from jaxllama.serve.keys import SETTINGS
from jaxllama.service import Model
from jaxllama.service.answers import Answers
from jaxllama.text.thoughts import ThoughtParser, ThoughtStart, start_in, thought_start
from jaxllama.text.tokenizer import Tokenizer

BUDGET = "reasoning_budget"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Most tokens of thoughts. Models have no setting for their effort, so that the name of one stands
# for a budget; None: as many as the model writes.
EFFORTS: Mapping[Effort, int | None] = {
    "none": 0,
    "minimal": 128,
    "low": 512,
    "medium": 2048,
    "high": 8192,
    "xhigh": None,
    "max": None,
}
PROMPT_END = 64  # tokens of a prompt in which its last mark of thoughts must be


def thinks(model: Model, format_: str | None) -> bool:
    """Say whether answers in a prompt format (None: the model's own) may begin with thoughts."""
    return model.intake.with_format(format_).format.thinks


def knobs_of_effort(
    request: web.Request,
    effort: Effort | None,
    knobs: Mapping[str, Any],
    name: str,
    *,
    is_thinking: bool,
) -> dict[str, Any]:
    """Return {"reasoning_budget": most tokens of thoughts} for a reasoning effort; {} for no bound.

    `name` is the request's field that holds `effort`, for errors. If the model does not think
    (`is_thinking` false), the field is reported as ignored, or refused under --strict. Raises
    InvalidParameter if the request's `knobs` have a budget too.
    """
    if effort is None or (effort == "none" and not is_thinking):
        return {}
    if not is_thinking:
        if request.app[SETTINGS].strict:
            raise InvalidParameter(
                f"{name} is not supported: this model does not think before it answers", name
            )
        note_ignored(request, [name])
        return {}
    if knobs.get(BUDGET) is not None:
        raise InvalidParameter(
            f"{name} and {BUDGET} both bound the thoughts; send one of them", name
        )
    budget = EFFORTS[effort]
    return {} if budget is None else {BUDGET: budget}


def thoughts_start(
    tokenizer: Tokenizer,
    answers: Answers,
    ending: Ending = Ending.ANSWER,
    messages: Sequence[Mapping[str, Any]] = (),
) -> ThoughtStart:
    """Say whether the prompt has begun the model's thoughts, has ended them, or neither.

    This is read from the end of the prompt, which all `answers` of the request share. With `ending`
    Ending.LAST, the answer continues the last of `messages`, and only this message is read.
    """
    if ending is Ending.LAST:
        content = messages[-1].get("content") if messages else None
        return start_in(content) if isinstance(content, str) else ThoughtStart.OVER
    prompt = answers.requests[0].prompt[-PROMPT_END:]
    return thought_start(tokenizer.decode(list(prompt), special=True))


def thought_parser(start: ThoughtStart | None) -> ThoughtParser | None:
    """Make the parser that splits the thoughts from one answer.

    `start` says whether the prompt has begun or ended the thoughts. None: they are not to be split
    off, and the result is None.
    """
    return None if start is None else ThoughtParser(start)
