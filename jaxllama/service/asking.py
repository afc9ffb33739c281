"""Asking: the generation task of one client (`Ask`), and the checked requests made of it.

A dialect makes an `Ask`; the service makes requests of it in a thread. Knows prompts and limits;
starts nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxllama.constraints.wanted import FIELDS
from jaxllama.errors import InvalidParameter, PromptTooLong
from jaxllama.formats import Message, Tool
from jaxllama.intake import Intake, PreparedRequest, Prompt, stream_of
from jaxllama.limits import check, check_count
from jaxllama.messages import ContextOverflow, Ending, Messages
from jaxllama.request import GenerationRequest

MOST_VALUES = 4096  # values of a request that are counted to estimate its size
UNCOUNTED = 64 << 10  # characters assumed for the values beyond
LOOKED_UP = 4096  # characters of the longest constraint that is looked up among the compiled ones


@dataclass(frozen=True)
class Ask:
    """The request of one client: `n` answers to each prompt or to a conversation, with knobs."""

    prompts: Sequence[Prompt] = ()
    messages: Messages | None = None
    knobs: Mapping[str, object] = field(default_factory=dict)
    n: int = 1
    tools: Sequence[Tool] = ()
    ending: Ending = Ending.ANSWER
    format: str | None = None  # prompt format; None: the model's own
    # What happens to a conversation longer than the context; None: it is refused.
    overflow: ContextOverflow | None = None
    # Most tokens of prompt and answer together: a longer answer is cut, not refused.
    total: int | None = None
    # Knob -> name of the field that the client used for it.
    names: Mapping[str, str] = field(default_factory=dict)


def count_choices(ask: Ask) -> int:
    """Return the number of answers that `ask` wants: `n` for each prompt or for its conversation.

    Raises InvalidParameter if a count exceeds its limit.
    """
    if bool(ask.prompts) == (ask.messages is not None):
        raise InvalidParameter("expected either prompts or messages", "messages")
    check("n", ask.n)
    check_count("prompts", len(ask.prompts))
    check_count("messages", len(ask.messages or ()))
    check_count("tools", len(ask.tools))
    count = ask.n * max(1, len(ask.prompts))
    check("answers", count)
    return count


def estimate_size(ask: Ask) -> int:
    """Estimate the number of characters in a request; reads at most a fixed number of values."""
    return estimate_characters([*ask.prompts, *(ask.messages or ()), *ask.tools])


def estimate_characters(value: object) -> int:
    """Estimate the number of characters in the texts of a JSON value.

    At most MOST_VALUES values are read; UNCOUNTED is added if there are more.
    """
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
    """Say whether the request has a constraint (schema, grammar) that takes time to compile.

    A constraint takes time if it is long or if `intake`, which checks and tokenizes requests, has
    not compiled it yet.
    """
    fields = {name: ask.knobs[name] for name in FIELDS if ask.knobs.get(name)}
    if not fields:
        return False
    size = estimate_characters(list(fields.values()))
    return size > LOOKED_UP or not intake.knows_constraint(fields)


def prepare_requests(intake: Intake, ask: Ask) -> list[PreparedRequest]:
    """Check and tokenize the prompts or the conversation of `ask`; return `n` requests for each.

    Each request to the engine has a seed of its own and is paired with the decoder of its answer's
    text. Errors name the fields as the client does.
    """
    try:
        if ask.messages is not None:
            speaking = intake.with_format(ask.format)
            firsts = [
                speaking.chat(
                    ask.messages,
                    ask.knobs,
                    tools=ask.tools,
                    ending=ask.ending,
                    total=ask.total,
                    overflow=ask.overflow or ContextOverflow.ERROR,
                )
            ]
        else:
            firsts = [
                intake.completion(prompt, ask.knobs, total=ask.total) for prompt in ask.prompts
            ]
    except InvalidParameter as error:
        raise renamed(error, ask.names) from error
    except PromptTooLong as error:
        raise PromptTooLong(in_their_words(str(error), ask.names, count=0)) from error
    return [stream_of(first, i) for first in firsts for i in range(ask.n)]


def check_cost(ready: Sequence[tuple[GenerationRequest, object]], most: int) -> None:
    """Raise InvalidParameter if prompts and answers may have more than `most` tokens in total.

    `ready` pairs each request with its text decoder, which is not used.
    """
    total = sum(request.cost for request, _ in ready)
    if total > most:
        raise InvalidParameter(
            f"prompts and max_tokens of all {len(ready)} answers come to {total} tokens; "
            f"this server allows {most} for one request (lower max_tokens or n)",
            "max_tokens",
        )


def renamed(error: InvalidParameter, names: Mapping[str, str]) -> InvalidParameter:
    """Copy the error, with our field names replaced by the names that the client used.

    `names` maps our names to the client's.
    """
    field = error.field or ""
    words = in_their_words(str(error), names, count=1)
    return InvalidParameter(words, names.get(field, error.field))


def in_their_words(message: str, names: Mapping[str, str], *, count: int) -> str:
    """Replace our field names in an error message by those that the client used.

    `names` maps ours to the client's. Only the first `count` occurrences of each are replaced (0:
    all), as a later one may be a word of the sentence, such as "stop".
    """
    for name, called in names.items():
        message = re.sub(rf"\b{name}\b", called, message, count=count)
    return message
