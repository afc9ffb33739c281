"""AnswerGrammar: the form that an answer must have, as grammar text within the bounds of a request.

Made by intake from request fields, taken by the compiler. Knows JSON and the grammar syntax of
llguidance; compiles nothing.
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
class AnswerGrammar:
    """A grammar, and the name of the request field that it comes from."""

    field: str
    grammar: str


def read_form(fields: Mapping[str, Any]) -> AnswerGrammar | None:
    """Return the grammar that a request sets for its answer; None if it sets none.

    `fields` are the request's fields; one of them, such as `json_schema` or `regex`, may set the
    grammar. Raises InvalidParameter if several do, or if the value is malformed.
    """
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
        "json_schema": schema_grammar,
        "json_object": lambda _: schema_grammar('{"type": "object"}'),
        "regex": LLMatcher.grammar_from_regex,
        "choices": choices_grammar,
        "grammar": user_grammar,
    }
    return AnswerGrammar(name, makers[name](value))


def schema_text(value: object) -> str:
    """Return a JSON schema, given as text or as a mapping, as JSON text.

    Raises InvalidParameter for anything else.
    """
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


def schema_grammar(text: str) -> str:
    """Convert the text of a JSON schema to a grammar of llguidance.

    Raises InvalidParameter for a schema that is malformed or too deeply nested.
    """
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
    if nesting_depth(schema) > MAX_DEPTH:
        raise InvalidParameter(
            f"json_schema is nested more than {MAX_DEPTH} deep; make it flatter", "json_schema"
        )
    schema.pop("x-guidance", None)  # llguidance would take settings from there
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SPACING)
    except ValueError as error:
        raise InvalidParameter(f"json_schema cannot be read: {error}", "json_schema") from error


def nesting_depth(value: object) -> int:
    """Return how deeply arrays and objects are nested, at most MAX_DEPTH + 1; uses no recursion."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [
            child for each in inner for child in (each.values() if isinstance(each, dict) else each)
        ]
        depth += bool(inner)
    return depth


def choices_grammar(texts: Sequence[str]) -> str:
    """Build the grammar of llguidance that allows exactly the answers in `texts`."""
    alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return LLMatcher.grammar_from_lark(f"start: {alternatives}")


def user_grammar(text: str) -> str:
    """Convert a Lark or GBNF grammar to llguidance's form.

    Raises InvalidParameter for one that cannot be read or has too many rules.
    """
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
