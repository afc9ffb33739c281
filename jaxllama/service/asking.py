"""Asking: what one client wants, and the checked requests that it comes to.

An `Ask` is made by a dialect and taken by the service, which makes requests of it in a thread.
Knows prompts and limits; starts nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxllama.constraints.wanted import FIELDS
from jaxllama.errors import InvalidParameter
from jaxllama.formats import Message, Tool
from jaxllama.intake import Intake, PreparedRequest, Prompt, stream_of
from jaxllama.limits import check, check_count
from jaxllama.messages import Ending, Turns

MOST_VALUES = 4096  # of a request that are looked at to tell its size
UNCOUNTED = 64 << 10  # characters that the other values are taken for
LOOKED_UP = 4096  # characters of a constraint that is looked for among the compiled ones


@dataclass(frozen=True)
class Ask:
    """What one client wants: `n` answers to each prompt or to a conversation, and knobs."""

    prompts: Sequence[Prompt] = ()
    messages: Turns | None = None
    knobs: Mapping[str, object] = field(default_factory=dict)
    n: int = 1
    tools: Sequence[Tool] = ()
    ending: Ending = Ending.ANSWER
    format: str | None = None  # of the prompt; None: the model's own
    names: Mapping[str, str] = field(default_factory=dict)  # of knobs that the client calls so


def count_choices(ask: Ask) -> int:
    """How many answers are wanted, within the limits."""
    if bool(ask.prompts) == (ask.messages is not None):
        raise InvalidParameter("expected either prompts or messages", "messages")
    check("n", ask.n)
    check_count("prompts", len(ask.prompts))
    check_count("messages", len(ask.messages or ()))
    check_count("tools", len(ask.tools))
    count = ask.n * max(1, len(ask.prompts))
    check("answers", count)
    return count


def size_of(ask: Ask) -> int:
    """About how many characters have to be prepared; looks at a bounded number of values."""
    return weight([*ask.prompts, *(ask.messages or ()), *ask.tools])


def weight(value: object) -> int:
    """About how many characters a JSON value has, or UNCOUNTED more than was counted."""
    size, rest, left = 0, [value], MOST_VALUES
    while rest:
        item = rest.pop()
        left -= 1
        if left < 0:
            return size + UNCOUNTED
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Message):
            rest.append(item.as_json())
        elif isinstance(item, Mapping):
            rest += item.values()
        elif isinstance(item, list | tuple):
            if len(item) > left:
                return size + len(item) + UNCOUNTED
            rest += item
    return size


def has_to_compile(intake: Intake, ask: Ask) -> bool:
    """Whether the request has a constraint that is not compiled yet, or a long one."""
    fields = {name: ask.knobs[name] for name in FIELDS if ask.knobs.get(name)}
    if not fields:
        return False
    return weight(list(fields.values())) > LOOKED_UP or not intake.knows_constraint(fields)


def ready_all(intake: Intake, ask: Ask) -> list[PreparedRequest]:
    """The checked request of every choice; stream i of a prompt has the seed of its number."""
    try:
        if ask.messages is not None:
            speaking = intake.with_format(ask.format)
            firsts = [speaking.chat(ask.messages, ask.knobs, tools=ask.tools, ending=ask.ending)]
        else:
            firsts = [intake.completion(prompt, ask.knobs) for prompt in ask.prompts]
    except InvalidParameter as error:
        raise renamed(error, ask.names) from error
    return [stream_of(first, i) for first in firsts for i in range(ask.n)]


def check_cost(ready: Sequence[PreparedRequest], most: int) -> None:
    """Refuse answers that may come to more tokens than one request is allowed."""
    total = sum(request.cost for request, _ in ready)
    if total > most:
        raise InvalidParameter(
            f"prompts and max_tokens of all {len(ready)} answers come to {total} tokens; "
            f"this server allows {most} for one request (lower max_tokens or n)",
            "max_tokens",
        )


def renamed(error: InvalidParameter, names: Mapping[str, str]) -> InvalidParameter:
    """The same error, in the client's own words for what it speaks of."""
    field = error.field or ""
    words = str(error)
    for name, called in names.items():
        words = re.sub(rf"\b{name}\b", called, words, count=1)
    return InvalidParameter(words, names.get(field, error.field))
