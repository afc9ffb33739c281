"""What the lines of a batch become: several answers, prompts made by a template, equal prompts."""

import json
from pathlib import Path

import pytest

from jaxllama.cli.placeholders import fill
from jaxllama.errors import InvalidParameter
from tests.cli.test_batch import write


def rows(path="out.jsonl"):
    found = map(json.loads, Path(path).read_text().splitlines())
    return {(row["index"], row.get("answer")): row for row in found}


@pytest.fixture
def batch(run, tmp_path):
    """Run a batch over lines of JSON, or over the text of a CSV file."""

    def batched(lines, *options):
        name = "in.csv" if isinstance(lines, str) else "in.jsonl"
        if isinstance(lines, str):
            (tmp_path / name).write_text(lines)
        else:
            write(tmp_path / name, *lines)
        return run("batch", name, "-o", "out.jsonl", *options)

    return batched


def test_several_answers_to_a_prompt_have_numbers_and_seeds_of_their_own(batch):
    result = batch([{"prompt": "a"}, {"prompt": "b", "count": 1}], "--count", 3, "--seed", 7)
    assert result.exit_code == 0 and "4 answers" in result.stderr
    found = rows()
    assert set(found) == {(0, 0), (0, 1), (0, 2), (1, None)}
    assert found[0, 0]["seed"] == found[1, None]["seed"] == 7
    assert len({found[0, number]["seed"] for number in range(3)}) == 3


def test_missing_answers_of_a_prompt_are_generated_in_a_second_run(batch):
    write(Path("out.jsonl"), {"index": 0, "answer": 1, "text": "kept"})
    result = batch([{"prompt": "a"}], "--count", 3)
    assert "1 of 3 answers are there already" in result.stderr
    assert [rows()[0, number]["text"] for number in range(3)] == ["A", "kept", "A"]


def test_a_result_with_more_answers_than_asked_for_is_of_another_batch(batch):
    write(Path("out.jsonl"), {"index": 0, "answer": 1, "text": "x"})
    assert "answers no prompt of this input" in batch([{"prompt": "a"}]).stderr


def test_a_count_of_a_line_has_bounds(batch):
    assert "count is 0" in batch([{"prompt": "a", "count": 0}]).stderr


def test_a_template_makes_prompts_of_the_rows_of_a_table(batch):
    result = batch('id,name,city\nx,Ann,Oslo\ny,"B, C",Rome\n', "--template", "{name} in {city}")
    assert result.exit_code == 0, result.stderr
    found = rows()
    assert (found[0, None]["id"], found[0, None]["text"]) == ("x", "ANN IN OSLO")
    assert found[1, None]["text"] == "B, C IN ROME"


def test_a_template_makes_conversations_of_lines_of_json(batch, model):
    (Path("t.txt")).write_text("say {what}\n")
    result = batch(
        [{"what": ["a", 1], "who": "Bo"}],
        *("--template", "@t.txt", "--chat", "--system", "You are {who}."),
    )
    assert result.exit_code == 0, result.stderr
    assert model.prompts == ['[system]You are Bo.[user]say ["a", 1][assistant]']


def test_a_row_without_a_value_is_a_bad_line(batch, model):
    result = batch("name\nAnn\n", "--template", "{nam}")
    assert result.exit_code == 2 and model.loaded == []
    assert "in.csv line 2: the template has {nam}; did you mean {name}?" in result.stderr


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ("a\n1\n", [], "which is missing"),
        ([{"a": 1}], ["--chat"], "need --template"),
        ([{"a": 1}], ["--template", "x", "--system", "y"], "--system needs --chat"),
        ([{"a": 1}], ["--template", "@none.txt"], "none.txt cannot be read"),
        ([{"a": 1}], ["--concurrency", "3"], "need --server"),
        ([{"prompt": "a"}], ["--server", "ftp://x"], "expected an address"),
        ([{"prompt": "a"}], ["--server", "http://x", "--slots", "3"], "give it to the server"),
    ],
)
def test_options_that_do_not_fit_are_refused(batch, model, lines, options, words):
    result = batch(lines, *options)
    assert result.exit_code == 2 and words in result.stderr
    assert model.loaded == [] and not Path("out.jsonl").exists()


def test_only_names_in_braces_are_placeholders():
    assert fill('{"a": {x}, {{x}}} {}', {"x": "1"}) == '{"a": 1, {x}} {}'
    with pytest.raises(InvalidParameter, match=r"expected one of \{x\}"):
        fill("{other}", {"x": "1"})


def test_equal_prompts_are_answered_once(batch, model):
    asked = []
    model.answer = lambda text: asked.append(text) or text.upper().encode()
    lines = [{"prompt": "a", "id": 1}, {"prompt": "b"}, {"prompt": "a", "id": 2}, {"prompt": "a"}]
    result = batch([*lines, {"prompt": "a", "max_tokens": 9}], "--deduplicate")
    assert "5 answers, 2 of them copies" in result.stderr
    found = rows()
    assert [found[index, None]["text"] for index in range(5)] == ["A", "B", "A", "A", "A"]
    assert [found[index, None].get("same_as") for index in range(5)] == [None, None, 0, 0, None]
    assert found[2, None]["id"] == 2 and found[0, None]["seed"] == found[3, None]["seed"]


def test_a_copy_of_an_answer_that_is_there_already(batch, model):
    write(Path("out.jsonl"), {"index": 1, "text": "kept"})
    batch([{"prompt": "a"}, {"prompt": "a"}], "--deduplicate")
    assert rows()[0, None]["text"] == "kept" and rows()[0, None]["same_as"] == 1
    assert model.prompts == []


def test_the_error_of_a_prompt_is_that_of_its_equals(batch):
    result = batch([{"prompt": "b" * 300}] * 2, "--deduplicate", "--keep-going")
    assert "2 failed" in result.stderr
    assert all("300 tokens" in row["error"] for row in rows().values())


def test_a_schema_is_read_from_a_file(batch):
    Path("s.json").write_text('{"type": "strng"}')
    assert "strng" in batch([{"prompt": "a"}], "--json-schema", "@s.json").stderr
    assert "cannot be read" in batch([{"prompt": "a"}], "--json-schema", "@none.json").stderr
