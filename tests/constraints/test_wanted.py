"""What is wanted of an answer: one form, within bounds."""

import pytest

from jaxllama.constraints.wanted import MAX_RULES, read_form, schema_text
from jaxllama.errors import InvalidParameter


def test_a_request_without_a_form_wants_none():
    assert read_form({"json_object": False, "regex": None, "choices": ()}) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": '{"type": "object"}'},
        {"json_object": True},
        {"regex": "a+"},
        {"choices": ("a", "b")},
        {"grammar": 'start: "a"'},
        {"grammar": 'root ::= "a"'},
    ],
)
def test_each_form_becomes_a_grammar_that_knows_its_field(fields):
    form = read_form(fields)
    assert form is not None
    assert form.field in fields
    assert form.grammar


def test_two_forms_are_refused():
    with pytest.raises(InvalidParameter, match="regex and choices are given together") as caught:
        read_form({"regex": "a", "choices": ("b",)})
    assert caught.value.field == "choices"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "no JSON"),
        ("[]", "expected a JSON object"),
        ("true", "expected a JSON object"),
        ('{"items":' * 200 + "{}" + "}" * 200, "deep"),
        ("[" * 100_000, "no JSON"),
        ('{"const": NaN}', "NaN is not JSON"),
        ('{"maximum": 1e400}', "1e400 is too large"),
        ('{"const": "\\ud800"}', "lone surrogate U\\+D800"),
        ('{"type": "object", "type": "string"}', "'type' comes twice"),
    ],
)
def test_a_schema_that_is_none_is_refused(text, word):
    with pytest.raises(InvalidParameter, match=word):
        read_form({"json_schema": text})


def test_a_schema_cannot_change_how_schemas_are_read():
    form = read_form({"json_schema": '{"x-guidance": {"lenient": true}, "not": {}}'})
    assert form is not None
    assert '"lenient": true' not in form.grammar


def test_a_schema_may_be_given_as_values():
    assert schema_text({"type": "integer"}) == '{"type": "integer"}'


@pytest.mark.parametrize("value", [7, ["a"], {"a": {1, 2}}, {"a": float("nan")}])
def test_values_that_are_no_schema_are_refused(value):
    with pytest.raises(InvalidParameter, match="json_schema"):
        schema_text(value)


def test_a_grammar_with_too_many_rules_is_refused():
    rules = "\n".join(f"r{i}: /a/" for i in range(MAX_RULES + 1))
    with pytest.raises(InvalidParameter, match="rules"):
        read_form({"grammar": f"start: r0\n{rules}"})


def test_text_that_is_no_grammar_is_refused():
    with pytest.raises(InvalidParameter, match="neither Lark nor GBNF"):
        read_form({"grammar": "garbage"})
