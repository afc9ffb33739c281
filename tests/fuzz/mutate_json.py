"""Seeded mutations of JSON: other values, other names, more and fewer fields.

Used by the targets whose input is JSON, beside the mutations of bytes.
"""

import copy
import json
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 2**31, 2**53, 2**63, 2**64, -(2**63), 1e308),
    *(
        "",
        " ",
        "a",
        "\0",
        "\ud800",
        "\u202e",
        "<|im_end|>",
        "../x",
        "%s{0}",
        "1",
        "NaN",
        "a" * 5000,
    ),
    *([], {}, [[]], [None], [{}], {"": 0}, {"type": "x"}, ["a"] * 300, list(range(300))),
    *("auto", "none", "json", "text", "user", "assistant", "tool", "scripted", "hi"),
)

MOST_BYTES = 4 << 20  # of a changed value: twice what a server accepts


def mutated_json(sound: Any, others: list[Any], random: Random) -> Any:
    """Return a copy of a JSON value with one to three changes; `others` lend their parts."""
    whole = [copy.deepcopy(sound)]
    for _ in range(random.randint(1, 3)):
        holder, key = random.choice(places(whole))
        change(holder, key, others, random)
    return whole[0] if len(dumped(whole)) < MOST_BYTES else None


def places(whole: list[Any]) -> list[tuple[Any, Any]]:
    """Return every place of a value: the list or mapping that holds it, and its key there."""
    found: list[tuple[Any, Any]] = []
    left: list[Any] = [whole]
    while left:
        each = left.pop()
        keys = range(len(each)) if isinstance(each, list) else list(each)
        for key in keys:
            found.append((each, key))
            if isinstance(each[key], list | dict):
                left.append(each[key])
    return found or [(whole, 0)]


def change(holder: Any, key: Any, others: list[Any], random: Random) -> None:
    """Change what is at one place."""
    kind = random.randrange(6)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random.choice(names_of(others))] = random.choice(VALUES)
    elif kind == 2:
        lent = random.choice(places([random.choice(others)]))
        holder[key] = copy.deepcopy(lent[0][lent[1]])
    elif kind == 3:
        holder[key] = [holder[key]] * random.choice((1, 2, 100))
    elif kind == 4 and isinstance(holder[key], str):
        holder[key] = holder[key] * random.choice((0, 2, 1000))
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))


def names_of(others: list[Any]) -> list[str]:
    """Return all names of fields in some values, sorted."""
    found = {key for each in others for _, key in places([each]) if isinstance(key, str)}
    return sorted(found) or ["a"]


def dumped(value: Any) -> bytes:
    """Return a value as JSON; lone surrogates are escaped."""
    return json.dumps(value).encode()
