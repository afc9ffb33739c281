"""`jaxllama classify`: rows in, rows with labels, probabilities and an accuracy out."""

import csv
import json
from pathlib import Path

import pytest


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(
        'text,right,note\n"soup, cold",no,a\nsoup hot,yes,b\n"two\nlines",,c\nsoup fine,yes,\n'
    )
    return path


@pytest.fixture
def opinion(model):
    """A model that answers " no" where the text has "cold", else " yes"."""

    def answer(text):
        said = b" no" if "cold" in text else b" yes"
        begun = text.rpartition("Answer:")[2].encode()
        return said[len(begun) :]

    model.answer = answer
    return model


# Most tests need the model, and not its name.
says_opinion = pytest.mark.usefixtures("opinion")

ASK = ("--question", "Good?", "--choices", "yes,no")


def cells(text):
    return list(csv.DictReader(text.splitlines(keepends=True)))


def test_every_text_gets_a_label_and_the_probability_of_each_choice(run, texts, opinion):
    result = run("classify", texts, *ASK)
    assert result.exit_code == 0
    found = cells(result.stdout)
    assert [row["label"] for row in found] == ["no", "yes", "yes", "yes"]
    assert found[2]["text"] == "two\nlines" and found[3]["note"] == ""
    for row in found:
        total = float(row["probability:yes"]) + float(row["probability:no"])
        assert total == pytest.approx(1)
        assert float(row["probability"]) == float(row[f"probability:{row['label']}"]) > 0.5
    assert "soup, cold\nGood?\nAnswer: no"[:-1] in opinion.prompts


def test_raw_puts_nothing_in_between(run, texts, opinion):
    run("classify", texts, "--question", " Q", "--choices", "a,b", "--raw")
    assert "soup hot Q" in opinion.prompts and not any("Answer" in one for one in opinion.prompts)


def test_the_accuracy_counts_rows_with_a_right_answer(run, texts, opinion):
    opinion.answer = lambda text: b" yes"[len(text.rpartition("Answer:")[2]) :]
    result = run("classify", texts, *ASK, "--gold", "right")
    assert "accuracy: 66.7% (2 of 3)" in result.stderr
    assert "yes: 2 of 2 found, 3 times chosen" in result.stderr
    assert "no: 0 of 1 found, 0 times chosen" in result.stderr


@says_opinion
def test_several_questions_have_columns_of_their_own(run, texts):
    result = run(
        *("classify", texts, "--question", "A?", "--question", "B?"),
        *("--choices", "yes,no", "--choices", '["no", "yes, but"]', "-o", "out.jsonl"),
    )
    assert result.exit_code == 0 and result.stdout == ""
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and rows[0]["label_1"] == rows[0]["label_2"] == "no"
    assert {"probability_1:yes", "probability_2:yes, but"} <= set(rows[0])


@says_opinion
def test_one_list_of_choices_serves_all_questions(run, texts):
    result = run("classify", texts, "--question", "A?", "--question", "B?", "--choices", "yes,no")
    assert {"probability_1:no", "probability_2:no"} <= set(cells(result.stdout)[0])


@says_opinion
def test_lines_of_text_and_of_json(run, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo cold\n")
    (tmp_path / "a.jsonl").write_text('{"body": "one", "n": 1}\n{"body": "two cold", "n": 2}\n')
    first = run("classify", "a.txt", *ASK).stdout
    second = run("classify", "a.jsonl", *ASK, "--column", "body").stdout
    for output in (first, second):
        assert [json.loads(line)["label"] for line in output.splitlines()] == ["yes", "no"]
    assert json.loads(second.splitlines()[1])["n"] == 2


@says_opinion
def test_a_text_that_is_too_long_ends_the_run_or_becomes_a_row(run, tmp_path):
    (tmp_path / "a.csv").write_text(f"text\nshort\n{'x' * 500}\ncold\n")
    failed = run("classify", "a.csv", *ASK)
    assert failed.exit_code == 2 and "a.csv line 3: " in failed.stderr
    result = run("classify", "a.csv", *ASK, "--keep-going")
    assert result.exit_code == 1
    found = cells(result.stdout)
    assert [row["label"] for row in found] == ["yes", "", "no"]
    assert found[1]["error"] and not found[0]["error"] and "1 failed" in result.stderr


BAD = [
    ("text,right\na,maybe\n", "right is 'maybe'; expected one of yes, no"),
    ("body,right\na,yes\n", "has no text in 'text'; it has 'body', 'right'"),
    ("text,wrong\na,yes\n", "has no column 'right'"),
    ("text,right,label\na,yes,x\n", "has a column 'label'"),
    ("text,right\na\n", "line 2: has 1 cells; expected 2"),
    ("text,text\na,b\n", "two columns are named 'text'"),
    ('text,right\n"a,yes\n', "is not CSV"),
    ("text,right\n", "has no texts"),
    ("", "is empty"),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_a_bad_file_is_refused_before_the_model_is_loaded(run, tmp_path, model, content, words):
    (tmp_path / "a.csv").write_text(content)
    result = run("classify", "a.csv", *ASK, "--gold", "right")
    assert result.exit_code == 2 and words in result.stderr
    assert model.loaded == [] and result.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--question", "a", "--choices", "x,x"], "each once"),
        (["--question", "a", "--choices", "[1]"], "more than texts"),
        (["--question", "a", "--choices", "x", "--choices", "y"], "--choices is given 2 times"),
        (["--question", "a", "--choices", "x", "--gold", "a", "--gold", "b"], "--gold is given 2"),
        ([*ASK, "-o", "texts.csv"], "the same file"),
        ([*ASK, "-o", "out.xml"], "ends in .xml; expected .csv, .jsonl"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, texts, model, options, words):
    before = texts.read_text()
    result = run("classify", texts, *options)
    assert result.exit_code == 2 and words in result.stderr
    assert model.loaded == [] and texts.read_text() == before
