import errno
import fcntl
import json
import os

import pytest

from jaxllama.engine.engine import Engine


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))


def rows(path):
    return {row["index"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def files(tmp_path):
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def test_every_line_is_answered_with_its_index_and_id(run, files):
    source, target = files
    write(
        source,
        {"prompt": "one", "id": "first"},
        {"messages": [{"role": "user", "content": "two"}], "id": 7},
        {"prompt": [104, 105]},
    )
    result = run("batch", source, "-o", target)
    assert result.exit_code == 0
    found = rows(target)
    assert [found[index]["text"] for index in range(3)] == ["ONE", "TWO", "HI"]
    assert (found[0]["id"], found[1]["id"]) == ("first", 7) and "id" not in found[2]
    assert found[0]["finish_reason"] == "end_token" and found[0]["usage"]["generated"] == 4
    assert "3 answers, 0 failed" in result.stderr


def test_many_more_prompts_than_slots(run, files):
    source, target = files
    write(source, *({"prompt": f"p{number}"} for number in range(300)))
    assert run("batch", source, "-o", target).exit_code == 0
    assert {index: row["text"] for index, row in rows(target).items()} == {
        number: f"P{number}" for number in range(300)
    }


def test_options_are_defaults_and_lines_have_the_last_word(run, files):
    source, target = files
    write(source, {"prompt": "abcdef"}, {"prompt": "abcdef", "max_tokens": 4, "top_p": 0.5})
    run("batch", source, "-o", target, "-n", "2", "--seed", "9")
    found = rows(target)
    assert [found[0]["text"], found[1]["text"]] == ["AB", "ABCD"]
    assert found[0]["seed"] == 9


def test_blank_lines_and_a_byte_order_mark_do_not_count(run, files):
    source, target = files
    source.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\n   \n{"prompt": "b"}')
    run("batch", source, "-o", target)
    assert {index: row["text"] for index, row in rows(target).items()} == {0: "A", 1: "B"}


def test_sixteen_slots_unless_told_otherwise(run, model, files):
    write(files[0], {"prompt": "a"})
    run("batch", files[0], "-o", files[1])
    assert model.loaded == [{"model": None}]  # LLM.load's own default


BAD = [
    ("{", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("[1]", "is no JSON object"),
    ("{}", "holds nothing; expected one of prompt and messages"),
    ({"promt": "a"}, "holds 'promt'"),
    ({"prompt": "a", "messages": []}, "expected one of prompt and messages"),
    ({"prompt": 5}, "neither text nor a list of token ids"),
    ({"prompt": ["a"]}, "neither text nor a list of token ids"),
    ({"prompt": [True]}, "neither text nor a list of token ids"),
    ({"messages": []}, "messages is no list"),
    ({"messages": ["hi"]}, "messages holds 'hi'"),
    ({"messages": [{"role": "user"}]}, "content None"),
    ({"prompt": "a", "top_pp": 1}, "unknown parameter 'top_pp'; did you mean 'top_p'?"),
    ({"prompt": "a", "top_p": 2}, "top_p is 2"),
    ('{"prompt": "a", "temperature": NaN}', "temperature is nan"),
    ({"prompt": "a", "stop": [""]}, "stop holds ''"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_bad_line_is_named_before_the_model_is_loaded(run, model, files, line, words):
    source, target = files
    write(source, {"prompt": "a"}, line)
    result = run("batch", source, "-o", target)
    assert result.exit_code == 2
    (message,) = result.stderr.splitlines()
    assert "in.jsonl line 2: " in message and words in message
    assert model.loaded == [] and not target.exists()


def test_several_bad_lines_are_named_at_once(run, files):
    write(files[0], *["{"] * 9)
    message = run("batch", files[0], "-o", files[1]).stderr
    assert "line 1" in message and "line 5" in message and "and 4 more" in message


def test_lines_that_are_not_utf8_are_bad_lines(run, files):
    files[0].write_bytes(b'{"prompt": "\xff"}\n')
    assert "line 1: is not JSON" in run("batch", files[0], "-o", files[1]).stderr


def test_keep_going_answers_the_others_and_says_so(run, files):
    source, target = files
    write(source, {"prompt": "a"}, {"top_k": 5, "id": "x"}, {"prompt": "b" * 300}, {"prompt": "c"})
    result = run("batch", source, "-o", target, "--keep-going")
    assert result.exit_code == 1
    found = rows(target)
    assert (found[0]["text"], found[3]["text"]) == ("A", "C")
    assert "expected one of" in found[1]["error"]
    assert found[2]["error"].startswith("prompt has 300 tokens")
    assert "2 answers, 2 failed" in result.stderr


def test_a_request_that_fails_inside_the_engine_fails_alone(run, model, files):
    model.answer = lambda text: [None] if text == "bad" else b"ok"
    write(files[0], {"prompt": "bad"}, {"prompt": "good"}, {"prompt": "fine"})
    assert run("batch", files[0], "-o", files[1], "--keep-going").exit_code == 1
    found = rows(files[1])
    assert "error" in found[0] and found[1]["text"] == found[2]["text"] == "ok"


def test_without_keep_going_the_line_that_failed_is_named(run, files):
    write(files[0], {"prompt": "a"}, {"prompt": "b" * 300})
    result = run("batch", files[0], "-o", files[1])
    assert result.exit_code == 2
    assert "in.jsonl line 2: prompt has 300 tokens" in result.stderr


def test_what_is_answered_is_not_asked_again(run, model, files):
    source, target = files
    write(source, {"prompt": "a"}, {"prompt": "b"})
    run("batch", source, "-o", target)
    before = target.read_bytes()
    result = run("batch", source, "-o", target)
    assert target.read_bytes() == before
    assert "2 of 2 answers are there already" in result.stderr
    assert len(model.loaded) == 1


def test_a_run_that_was_stopped_goes_on(run, files, monkeypatch):
    source, target = files
    write(source, *({"prompt": f"p{number}"} for number in range(60)))
    step, steps = Engine.step, []

    def interrupted(self):
        steps.append(None)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", interrupted)
        assert run("batch", source, "-o", target).exit_code == 130
    had = target.read_text()
    assert 0 < len(rows(target)) < 60
    assert run("batch", source, "-o", target).exit_code == 0
    assert target.read_text().startswith(had)
    assert {index: row["text"] for index, row in rows(target).items()} == {
        number: f"P{number}" for number in range(60)
    }


@pytest.mark.parametrize("left", ['{"index": 1, "te', '{"index": 1, "text": "B"}', "\x00", ""])
def test_a_torn_last_line_is_repaired(run, files, left):
    source, target = files
    write(source, {"prompt": "a"}, {"prompt": "b"})
    whole = '{"index": 0, "text": "kept"}\n'
    target.write_text(whole + left)
    assert run("batch", source, "-o", target).exit_code == 0
    assert target.read_text().startswith(whole)
    found = rows(target)
    assert (found[0]["text"], found[1]["text"]) == ("kept", "B")
    assert len(target.read_text().splitlines()) == 2


def test_failed_answers_are_asked_again(run, files):
    source, target = files
    write(source, {"prompt": "a"}, {"prompt": "b"})
    write(target, {"index": 1, "error": "the machine was on fire"}, {"index": 0, "text": "kept"})
    target.chmod(0o640)
    assert run("batch", source, "-o", target).exit_code == 0
    assert {index: row["text"] for index, row in rows(target).items()} == {0: "kept", 1: "B"}
    assert len(target.read_text().splitlines()) == 2
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[]",
        "{}",
        '{"index": 5}',
        '{"index": -1}',
        '{"index": "0"}',
        '{"index": 0, "id": 3}',
    ],
)
def test_a_file_that_is_not_of_this_batch_is_left_alone(run, model, files, line):
    source, target = files
    write(source, {"prompt": "a"})
    target.write_text(f"{line}\n")
    result = run("batch", source, "-o", target)
    assert result.exit_code == 2
    assert "out.jsonl line 1 answers no prompt of this input" in result.stderr
    assert target.read_text() == f"{line}\n"
    assert model.loaded == []


def test_two_batches_cannot_write_one_file(run, files):
    source, target = files
    write(source, {"prompt": "a"})
    with target.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = run("batch", source, "-o", target)
    assert result.exit_code == 2 and "another batch" in result.stderr


def test_the_input_is_not_overwritten(run, files):
    write(files[0], {"prompt": "a"})
    result = run("batch", files[0], "-o", files[0])
    assert result.exit_code == 2 and "same file" in result.stderr


def test_an_output_that_cannot_be_written_is_one_line(run, model, files):
    write(files[0], {"prompt": "a"})
    result = run("batch", files[0], "-o", "no/such/folder/out.jsonl")
    assert result.exit_code == 2 and "cannot be written" in result.stderr
    assert model.loaded == []


def test_an_output_that_is_no_file_is_refused(run, model, files):
    write(files[0], {"prompt": "a"})
    result = run("batch", files[0], "-o", "/dev/zero")
    assert result.exit_code == 2 and "/dev/zero is no file" in result.stderr
    assert model.loaded == []


def test_a_full_disk_is_one_line_and_what_was_written_stays(run, files, monkeypatch):
    write(files[0], {"prompt": "a"}, {"prompt": "b"})
    written = []

    def as_json(row):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(row)
        return json.dumps(row)

    monkeypatch.setattr("jaxllama.cli.results.as_json", as_json)
    result = run("batch", files[0], "-o", files[1])
    assert result.exit_code == 2 and "No space left" in result.stderr
    assert len(rows(files[1])) == 1


def test_nothing_to_ask_loads_nothing(run, model, files):
    files[0].write_text("\n")
    assert run("batch", files[0], "-o", files[1]).exit_code == 0
    assert model.loaded == []
