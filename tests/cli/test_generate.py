import json

import pytest

from jaxllama.engine.engine import Engine


def test_the_text_goes_to_stdout_and_the_figures_to_stderr(run):
    result = run("generate", "-p", "hé")
    assert result.exit_code == 0
    assert result.stdout == "HÉ\n"
    (line,) = result.stderr.splitlines()
    assert "prompt: 3 tokens" in line and "answer: 4 tokens" in line and "first token" in line


def test_one_slot_unless_told_otherwise(run, model):
    run("generate", "-p", "a")
    run("generate", "-p", "a", "--slots", "3", "-m", "other")
    assert model.loaded == [{"model": None, "slots": 1}, {"model": "other", "slots": 3}]


def test_json_is_one_object_with_every_field_and_timings(run):
    result = run("generate", "-p", "hi", "--json", "--logprobs", "1", "--seed", "5", "-n", "1")
    found = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert (found["text"], found["tokens"], found["finish_reason"]) == ("H", [ord("H")], "length")
    assert (found["seed"], found["stop"]) == (5, None)
    assert (found["usage"]["prompt"], found["usage"]["generated"]) == (2, 1)
    assert found["logprobs"][0]["logprob"] < 0
    assert found["timings"]["generated_tokens_per_second"] is None
    assert found["timings"]["seconds_to_first"] > 0


def test_without_logprobs_they_are_null(run):
    assert json.loads(run("generate", "-p", "hi", "--json").stdout)["logprobs"] is None


def test_the_prompt_may_come_from_standard_input(run, model):
    assert run("generate", "-p", "-", said="hi\nthere\n").stdout == "HI\nTHERE\n"
    assert model.prompts == ["hi\nthere"]


def test_the_prompt_may_be_given_without_an_option(run, model):
    assert run("generate", "hi there").stdout == "HI THERE\n"
    result = run("generate", "hi", "-p", "there")
    assert result.exit_code == 2 and "given twice" in result.stderr
    assert model.prompts == ["hi there"]


def test_the_prompt_may_come_from_a_file(run, model, tmp_path):
    (tmp_path / "prompt.txt").write_text("one\n\n")
    run("generate", "--prompt-file", "prompt.txt")
    assert model.prompts == ["one\n"]


@pytest.mark.parametrize("arguments", [[], ["a", "--prompt-file", "prompt.txt"]])
def test_one_prompt_is_needed_and_not_two(run, model, tmp_path, arguments):
    (tmp_path / "prompt.txt").write_text("a")
    result = run("generate", *arguments)
    assert result.exit_code == 2 and "one prompt" in result.stderr
    assert model.loaded == []


def test_a_prompt_that_is_no_text_is_refused_before_loading(run, model):
    result = run("generate", "-p", "-", said=b"ab\xff")
    assert result.exit_code == 2
    assert result.stderr == "error: standard input is not UTF-8 text: byte 0xff at 2\n"
    assert model.loaded == []


def test_chat_answers_the_prompt_as_a_question(run, model):
    assert run("generate", "-p", "hi", "--chat").stdout == "HI\n"
    assert model.prompts == ["[user]hi[assistant]"]


def test_a_format_without_a_conversation_is_refused(run):
    result = run("generate", "-p", "hi", "--format", "chatml")
    assert result.exit_code == 2 and "--chat" in result.stderr


def test_a_prompt_that_does_not_fit_is_one_line(run):
    result = run("generate", "-p", "a" * 300)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: prompt has 300 tokens")


def test_knobs_reach_the_request(run):
    result = run("generate", "-p", "abcdef", "--stop", "D")
    assert result.stdout == "ABC\n"


def test_ctrl_c_ends_with_130(run, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupted)
    assert run("generate", "-p", "abc").exit_code == 130


def test_a_model_cannot_command_the_terminal(run, model, monkeypatch):
    model.answer = lambda _: b"\x1b[2Ja\tb\x07"
    assert run("generate", "-p", "a").stdout == "\x1b[2Ja\tb\x07\n"
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    monkeypatch.setattr("rich.progress.Progress", NoBars)
    shown = run("generate", "-p", "a").stdout
    assert "\x1b[2J" not in shown and "\u241b[2Ja\tb\u2407" in shown


class NoBars:
    """In the place of rich's bars, which would draw on a terminal."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_perplexity_prints_one_figure(run, tmp_path):
    (tmp_path / "text.txt").write_text("some text")
    result = run("perplexity", "text.txt")
    assert result.stdout.startswith("perplexity ") and "over 8 tokens" in result.stdout
    found = json.loads(run("perplexity", "text.txt", "--json").stdout)
    assert found["tokens"] == 8 and found["perplexity"] > 1


def test_perplexity_of_nothing_is_refused(run, tmp_path):
    (tmp_path / "text.txt").write_text("")
    result = run("perplexity", "text.txt")
    assert result.exit_code == 2 and "fewer than 2 tokens" in result.stderr


def test_a_negative_prompt_takes_a_second_slot(run, model):
    guided = ("generate", "-p", "a", "--negative-prompt", "b", "--guidance-scale", "2")
    assert run(*guided).stdout == "A\n"
    assert model.loaded[-1]["slots"] == 2
    assert model.prompts == ["a", "b"]
    assert "needs 2 slots" in run(*guided, "--slots", "1").stderr


def test_beams_are_told_best_first_with_their_scores(run, model):
    result = run("generate", "-p", "a", "--beams", "3", "-n", "1")
    assert result.stdout == "A\n"
    scores = [float(line.split()[0]) for line in result.stderr.splitlines()]
    assert scores == [-0.6931, -1.3863, -2.0794]
    assert model.loaded[-1]["slots"] == 3
    told = json.loads(run("generate", "-p", "a", "--beams", "3", "-n", "1", "--json").stdout)
    assert [each["tokens"] for each in told["hypotheses"]] == [[65], [66], [67]]


def test_a_beam_length_finds_one_answer(run):
    line = ("generate", "-p", "a", "--beams", "3", "--beam-length", "2", "-n", "2", "--json")
    (found,) = json.loads(run(*line).stdout)["hypotheses"]
    assert found["tokens"][0] == 65


def test_early_stopping_may_be_named(run):
    for more in ([], ["--early-stopping"], ["--early-stopping", "never"]):
        found = run("generate", "-p", "a", "--beams", "2", "-n", "2", "--json", *more)
        assert len(json.loads(found.stdout)["hypotheses"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--length-penalty", "2"], "need --beams"),
        (["--beam-length", "2"], "need --beams"),
        (["--beams", "2", "--beam-length", "2", "--early-stopping"], "finds one answer"),
        (["--beams", "2", "--top-k", "4"], "not with --top-k"),
        (["--beams", "2", "--temperature", "1"], "not with --temperature"),
        (["--beams", "2", "--chat"], "ends answers at a text"),
        (["--beams", "99"], "not in the range 1<=x<=16"),
        (["--beams", "2", "--length-penalty", "nan"], "length_penalty is nan"),
    ],
)
def test_what_beams_do_not_go_with_is_refused(run, arguments, words):
    result = run("generate", "-p", "a", *arguments)
    assert result.exit_code == 2 and words in " ".join(result.stderr.split())


def test_recommended_sampling_is_switched_off_by_an_option(run, model):
    run("generate", "-p", "hello", "--sampling-defaults", "none")
    assert model.loaded[-1]["sampling_defaults"] == "none"
    run("generate", "-p", "hello")
    assert "sampling_defaults" not in model.loaded[-1]  # LLM.load's own default
    assert run("generate", "-p", "hello", "--sampling-defaults", "some").exit_code == 2
