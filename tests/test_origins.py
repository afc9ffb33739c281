"""The README's table of other systems' features is made from the marks of the tests."""

import ast
from pathlib import Path

from tests.origins import HEAD, features_of, marked, table

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_readme_has_the_table_of_the_marked_tests():
    assert table() in README, "run `python -m tests.origins` and put the table into the README"
    assert README.count(HEAD) == 1


def test_every_origin_system_has_features_and_no_feature_is_named_twice():
    found = list(marked())
    systems = {system for system, *_ in found}
    assert systems == {"LLaMbA", "RLLaMA", "llama-burn", "Rama", "basilisk", "ExLlama"}
    named = [(system, feature) for system, feature, *_ in found]
    assert len(set(named)) == len(named)


def test_marks_are_read():
    source = '@pytest.mark.origin("A: b")\n@pytest.mark.skip\ndef test_it():\n    pass\n'
    (node,) = ast.parse(source).body
    assert list(features_of(node)) == ["A: b"]
