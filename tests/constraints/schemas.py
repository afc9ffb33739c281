"""Random JSON schemas, small enough that a random answer may come to an end."""

import random
from typing import Any


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of objects, arrays, texts, numbers and choices, three deep at most."""
    simple = (text, whole_number, number, choice, boolean)
    nested = (obj, array, either)
    makers = simple if depth >= 3 else nested if depth == 0 else simple + nested
    return rng.choice(makers)(rng, depth)


def obj(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["name", "age", "ok", "tags", "é", "a b", "x_1"], rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": False,
    }


def array(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(0, 2)
    items = random_schema(rng, depth + 1)
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + rng.randint(0, 2)}


def either(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def text(rng: random.Random, _depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": "string", "pattern": rng.choice(["^[a-z]{1,4}$", "^(a|bc)+$", "^[0-9-]+$"])}
    if rng.random() < 0.3:
        return {"type": "string", "format": rng.choice(["date", "uuid"])}
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 8)}


def whole_number(rng: random.Random, _depth: int) -> dict[str, Any]:
    low = rng.randint(-500, 500)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 900)}


def number(rng: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": "number", "minimum": -10, "maximum": rng.choice([0, 0.5, 99.25])}


def choice(rng: random.Random, _depth: int) -> dict[str, Any]:
    values: list[Any] = ["red", "grün", "", 7, -1.5, None, True, 'a"b']
    return {"enum": rng.sample(values, rng.randint(1, 4))}


def boolean(rng: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null"])}
