"""The bounds of every core request field, in one table that all front ends share.

The CLI, the Python API and each HTTP dialect validate through `check`; options, schemas and
documentation are generated from the same rows. Sampler knobs declare their own bounds.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxllama.errors import InvalidParameter


@dataclass(frozen=True)
class Limit:
    """Bounds, default and help text of one request field."""

    kind: type
    default: object
    low: float | None = None
    high: float | None = None
    help: str = ""
    many: bool = False  # a list of `kind`, of at most `most` items
    most: int = 0
    longest: int = 0  # characters of one string
    words: tuple[str, ...] = ()  # texts that are accepted in place of a number


MAX_SEED = 2**63 - 1

LIMITS: dict[str, Limit] = {
    "preset": Limit(str, None, help="use a named set of knobs; knobs beside it win", longest=64),
    "max_tokens": Limit(int, None, 1, 10**9, "generate at most N tokens (default: all that fit)"),
    "temperature": Limit(float, 1.0, 0.0, 100.0, "set the randomness; 0 = the likeliest token"),
    "temperature_last": Limit(bool, False, help="apply temperature after the filters, not before"),
    "seed": Limit(int, None, 0, MAX_SEED, "set the seed; same seed, same text (default: random)"),
    "stop": Limit(str, (), help="end the answer at this text", many=True, most=16, longest=256),
    "stop_ids": Limit(int, (), 0, 2**31 - 1, "end the answer at these ids", many=True, most=16),
    "speculate": Limit(
        int,
        "auto",
        1,
        16,
        "check drafts of up to N tokens in each step, which changes no token: off, auto (as many "
        "as pay) or N",
        words=("off", "auto"),
    ),
    "ignore_eos": Limit(bool, False, help="continue after the model's own end tokens"),
    "logprobs": Limit(int, None, 0, 20, "return log-probabilities of each token and N others"),
    "guidance_scale": Limit(
        float, 1.0, -100.0, 100.0, "move away from the answer to negative_prompt by this; 1 = off"
    ),
    "negative_prompt": Limit(
        str,
        None,
        help="move away from the answer to this prompt (in a chat: to this system message)",
        longest=64 << 10,
    ),
    "lora": Limit(str, None, help="apply this loaded adapter to the answer", longest=128),
    "lora_scale": Limit(float, 1.0, -100.0, 100.0, "multiply the effect of the adapter by this"),
    "reasoning_budget": Limit(
        int, None, 0, 10**9, "let the model think for at most N tokens before it answers; 0 = none"
    ),
    "json_schema": Limit(str, None, help="hold the answer to this JSON schema", longest=64 << 10),
    "json_object": Limit(bool, False, help="make the answer a JSON object"),
    "regex": Limit(str, None, help="make the whole answer match this pattern", longest=4096),
    "choices": Limit(str, (), help="answer with one of these", many=True, most=256, longest=1024),
    "grammar": Limit(str, None, help="hold the answer to a Lark or GBNF grammar", longest=64 << 10),
}

# Fields of front ends only: bounds on the number of prompts, answers, messages and so on.
FRONT: dict[str, Limit] = {
    "n": Limit(int, 1, 1, 16, "answers to each prompt"),
    "best_of": Limit(int, None, 1, 16, "answers to choose the best from"),
    "width": Limit(int, 4, 1, 16, "prefixes of an answer to follow at a time"),
    "beam_length": Limit(int, None, 1, 64, "tokens that a search looks ahead, as ExLlama does"),
    "length_penalty": Limit(float, 1.0, -10.0, 10.0, "above 0 favours long answers, below short"),
    "prompts": Limit(str, (), help="prompts of one request", many=True, most=16),
    "answers": Limit(int, 1, 1, 32, "answers of one request, to all its prompts together"),
    "messages": Limit(str, (), help="messages of a conversation", many=True, most=2048),
    "context_overflow": Limit(
        str,
        "error",
        help="a conversation longer than the context: error refuses it; drop_oldest leaves out its "
        "oldest turns, but not the system message; keep_fixed keeps its first turn, too",
        longest=16,
    ),
    "tools": Limit(str, (), help="tools a model may call", many=True, most=128),
    "conversations": Limit(str, (), help="conversations of a connection", many=True, most=32),
    "queries": Limit(str, (), help="queries of one batch", many=True, most=4096),
    "valid_responses": Limit(str, (), help="responses to choose from", many=True, most=20),
    "inputs": Limit(str, (), help="texts to embed", many=True, most=2048),
    "sentence": Limit(str, None, help="a text for an encoder", longest=128 << 10),
    "dimensions": Limit(int, None, 1, 65536, "numbers of each vector to keep (encoders only)"),
    "lora_name": Limit(str, None, help="name for an adapter", longest=128),
    "lora_path": Limit(str, None, help="an adapter's folder", longest=4096),
    "prompt_name": Limit(str, None, help="the encoder's prompt before every text", longest=64),
    "continuations": Limit(str, (), help="texts that could follow", many=True, most=256),
    "documents": Limit(str, (), help="texts to rank", many=True, most=256),
    "top_n": Limit(int, None, 1, 256, "documents to return"),
    "text_2": Limit(str, (), help="texts to score", many=True, most=256),
    "labels": Limit(str, (), help="labels to choose from", many=True, most=256),
    "texts": Limit(str, (), help="texts to classify, one after the other", many=True, most=256),
    "questions": Limit(str, (), help="texts after each prompt, before labels", many=True, most=64),
    "what_if": Limit(float, (), help="numbers to draw with instead", many=True, most=64),
    "candidates": Limit(int, 0, 0, 64, "likeliest tokens to list after each stage"),
    "position": Limit(int, None, 0, 10**9, "explain only this token of the answer, from 0"),
    "recording": Limit(str, None, help="id of a kept recording", longest=64),
    "top_logprobs": Limit(int, None, 0, 20, "likeliest tokens to return at each position"),
    "metadata": Limit(str, (), help="notes of the client; of no effect", many=True, most=16),
    "user": Limit(str, None, help="who asks; of no effect", longest=512),
    "safety_identifier": Limit(str, None, help="who asks; of no effect", longest=512),
    "prompt_cache_key": Limit(str, None, help="of no effect", longest=512),
    "prompt_cache_retention": Limit(str, None, help="of no effect", longest=64),
}


def check_count(name: str, count: int) -> None:
    """Raise InvalidParameter if a request may not have `count` entries in the field `name`.

    `name` is the name of a field that holds a list, such as "messages".
    """
    most = (LIMITS | FRONT)[name].most
    if count > most:
        raise InvalidParameter(f"{name} has {count} entries; at most {most} are allowed", name)


def check(name: str, value: object) -> object:
    """Return `value`, checked and converted to the type of the request field `name`.

    None gives the field's default. Raises InvalidParameter for a wrong value.
    """
    limit = (LIMITS | FRONT)[name]
    if value is None:
        return limit.default
    if not limit.many:
        return check_number_or_text(name, value, limit)
    items = [value] if isinstance(value, str | int) else value
    if isinstance(items, Mapping | bytes) or not isinstance(items, Iterable):
        raise InvalidParameter(f"{name} is {value!r:.100}; expected a list", name)
    items = list(items)
    if len(items) > limit.most:
        raise InvalidParameter(
            f"{name} has {len(items)} entries; at most {limit.most} are allowed", name
        )
    return tuple(check_number_or_text(name, item, limit) for item in items)


def check_number_or_text(name: str, value: object, limit: Limit) -> object:
    """Return `value` if it fits `limit` in type and bounds; raise InvalidParameter if not.

    `value` is one scalar of the request's field `name`; an int in a float field becomes a float.
    """
    if limit.words and isinstance(value, str):
        return check_word(name, value, limit)
    if limit.kind is str:
        if not isinstance(value, str) or not value:
            raise InvalidParameter(f"{name} holds {value!r}; expected non-empty text", name)
        if len(value) > limit.longest:
            raise InvalidParameter(
                f"{name} has {len(value)} characters; at most {limit.longest} are allowed", name
            )
        return value
    if limit.kind is bool:
        if not isinstance(value, bool):
            raise InvalidParameter(f"{name} is {value!r}; expected true or false", name)
        return value
    return check_number(name, value, limit.kind, limit.low, limit.high)


def check_word(name: str, value: str, limit: Limit) -> str:
    """Return `value` if it is one of the words that the field accepts beside numbers.

    `name` is the request's field and `limit` its limits. Raises InvalidParameter for another text.
    """
    if value not in limit.words:
        raise InvalidParameter(
            f"{name} is {value[:100]!r}; expected {', '.join(limit.words)} or a whole number",
            name,
        )
    return value


def check_number(
    name: str, value: object, kind: type, low: float | None, high: float | None
) -> int | float:
    """Return `value` as a number of type `kind`; raise InvalidParameter if it is out of bounds.

    `name` is the request's field, for the error. `low` and `high` are the least and the highest
    value; None: no bound. A float field also accepts an int.
    """
    word = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidParameter(f"{name} is {value!r}; expected {word}", name)
    if kind is int and not isinstance(value, int):
        raise InvalidParameter(f"{name} is {value!r}; expected a whole number", name)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidParameter(f"{name} is {value}; expected a finite number", name)
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"
        raise InvalidParameter(f"{name} is {value}; it must lie in {span}", name)
    return value if kind is int else float(value)


def unknown_field(name: str, known: Iterable[str]) -> InvalidParameter:
    """Build the error for an unknown field; it suggests the field with the nearest name.

    `known` are the names of the fields that exist.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InvalidParameter(f"unknown parameter {name!r}{hint}", name)


def unknown_preset(name: str, known: Iterable[str]) -> InvalidParameter:
    """Build the error for a preset that is not installed; it suggests the nearest name, or all.

    `known` are the names of the installed presets.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(known) or 'none'}"
    return InvalidParameter(f"unknown preset {name!r}; {hint}", "preset")
