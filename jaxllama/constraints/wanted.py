"""Wanted: which form an answer has to have, as one grammar text, within the bounds of a request.

Made by intake from request fields, taken by the compiler. Knows JSON and llguidance's way to write
grammars down; compiles nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from jaxllama import strict_json
from jaxllama.errors import InvalidParameter

FIELDS = ("json_schema", "json_object", "regex", "choices", "grammar")
MAX_DEPTH = 32  # of a schema
MAX_RULES = 1024  # of a grammar, counted in lines
MAX_SCHEMA = 64 << 10  # characters
# As `json.dumps` writes, so that a model cannot fill its budget with white space.
SPACING: Any = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "lenient": False,  # a keyword that cannot be kept is refused
}


@dataclass(frozen=True)
class Wanted:
    """A grammar, and the request field it came from."""

    field: str
    grammar: str


def wanted(fields: Mapping[str, Any]) -> Wanted | None:
    """What the fields of a request ask for; None where they ask for no form."""
    given = [name for name in FIELDS if fields.get(name) not in (None, False, ())]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidParameter(
            f"{' and '.join(given)} are given together; an answer can have one form: give one",
            given[1],
        )
    name, value = given[0], fields[given[0]]
    makers = {
        "json_schema": of_schema,
        "json_object": lambda _: of_schema('{"type": "object"}'),
        "regex": LLMatcher.grammar_from_regex,
        "choices": of_choices,
        "grammar": of_grammar,
    }
    return Wanted(name, makers[name](value))


def schema_text(value: object) -> str:
    """A schema as JSON text, given as text or as the values it stands for."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise InvalidParameter(
            f"json_schema is {value!r:.100}; expected a schema as an object or as JSON text",
            "json_schema",
        )
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter(f"json_schema is no JSON: {error}", "json_schema") from error


def of_schema(text: str) -> str:
    """The grammar of a JSON schema."""
    try:
        schema = strict_json.loads(text)
    except InvalidParameter as error:
        raise InvalidParameter(f"json_schema is not valid: {error}", "json_schema") from error
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"json_schema is no JSON: {error}", "json_schema") from error
    if not isinstance(schema, dict):
        raise InvalidParameter(
            f"json_schema is {text[:100]!r}; expected a JSON object", "json_schema"
        )
    if depth(schema) > MAX_DEPTH:
        raise InvalidParameter(
            f"json_schema is nested more than {MAX_DEPTH} deep; make it flatter", "json_schema"
        )
    schema.pop("x-guidance", None)  # llguidance would take settings from there
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SPACING)
    except ValueError as error:
        raise InvalidParameter(f"json_schema cannot be read: {error}", "json_schema") from error


def depth(value: object) -> int:
    """How deep arrays and objects are nested; counted without recursion, up to the bound."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [
            child for each in inner for child in (each.values() if isinstance(each, dict) else each)
        ]
        depth += bool(inner)
    return depth


def of_choices(texts: Sequence[str]) -> str:
    """The grammar of one text out of several."""
    alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return LLMatcher.grammar_from_lark(f"start: {alternatives}")


def of_grammar(text: str) -> str:
    """The grammar of Lark or GBNF text."""
    rules = sum(":" in line for line in text.splitlines())
    if rules > MAX_RULES:
        raise InvalidParameter(
            f"grammar has about {rules} rules; at most {MAX_RULES} are allowed", "grammar"
        )
    try:
        lark = any_to_lark(text)
    except (Exception, RecursionError) as error:
        raise InvalidParameter(f"grammar is neither Lark nor GBNF: {error}", "grammar") from error
    return LLMatcher.grammar_from_lark(lark)
