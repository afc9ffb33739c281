"""Strict JSON: parses text that means the same to every reader; else raises InvalidParameter.

Used for request bodies and for schemas given as text. Refuses duplicate keys, NaN, numbers that do
not fit a float, and lone surrogates; must not know fields.
"""

import json
import math
from typing import Any, NoReturn

from jaxllama.errors import InvalidParameter

MOST_DIGITS = 400  # of a number; a longer one does not fit a float


def loads(text: str) -> Any:
    """Parse JSON text without repeated keys, NaN, Infinity, too large numbers or lone surrogates.

    Raises InvalidParameter if the text has one of these, and ValueError if it is no JSON.
    """
    value = json.loads(
        text,
        object_pairs_hook=without_doubles,
        parse_int=parse_int,
        parse_float=parse_float,
        parse_constant=refuse_constant,
    )
    if r"\u" in text:
        check_characters(value)
    return value


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from (key, value) pairs; raise InvalidParameter if a key occurs twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidParameter(f"key {key[:100]!r} comes twice in one object", key[:100])
            seen.add(key)
    return made


def parse_int(text: str) -> int:
    """Parse a whole number; raise InvalidParameter for more than MOST_DIGITS digits."""
    if len(text) > MOST_DIGITS:
        raise InvalidParameter(f"a number has {len(text)} digits; at most {MOST_DIGITS} are read")
    return int(text)


def parse_float(text: str) -> float:
    """Parse a number; raise InvalidParameter for one that is infinite as a float."""
    value = float(text) if len(text) <= MOST_DIGITS else math.inf
    if not math.isfinite(value):
        raise InvalidParameter(f"number {text[:40]} is too large")
    return value


def refuse_constant(text: str) -> NoReturn:
    """Raise InvalidParameter for `text`: NaN, Infinity or -Infinity, which are not JSON."""
    raise InvalidParameter(f"{text} is not JSON; expected a finite number")


def check_characters(value: Any) -> None:
    """Raise InvalidParameter for a lone surrogate in any text or key: it cannot be encoded."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise InvalidParameter(
                    f"text has the lone surrogate U+{ord(item[error.start]):04X}; expected valid "
                    f"Unicode"
                ) from error
        elif isinstance(item, dict):
            rest += item
            rest += item.values()
        elif isinstance(item, list):
            rest += item
