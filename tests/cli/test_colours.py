"""Options that users of the origin systems bring: colours, names, placeholders, quiet."""

from pathlib import Path

import pytest

from jaxllama.cli import colours
from jaxllama.cli.colours import PROMPT_COLOUR, colour_of
from jaxllama.request import TokenLogprobs


@pytest.fixture
def shown(monkeypatch):
    """The pieces that are printed, each with its colour, on a terminal with colours."""
    pieces = []
    monkeypatch.setattr(colours, "show", lambda text, colour=None: pieces.append((text, colour)))
    monkeypatch.setattr(colours, "has_colours", lambda: True)
    return pieces


def test_likely_tokens_are_red_and_unlikely_ones_green():
    token = TokenLogprobs(logprob=-50.0, sampled=0.0)
    assert colour_of(token, "model") == (128, 255, 128)
    assert colour_of(token, "sampled") == (255, 128, 128)


@pytest.mark.origin("RLLaMA: tokens coloured by their probability")
def test_each_token_has_the_colour_of_its_probability(run, shown):
    run("generate", "-p", "ab", "--echo", "--show-probabilities", "sampled", "--temperature", 0)
    certain = (255, 128, 128)
    assert [each for each in shown if each[0]] == [
        ("ab", PROMPT_COLOUR),
        ("A", certain),
        ("B", certain),
    ]


def test_a_chat_has_colours_too(run, shown):
    run("chat", "--show-probabilities", said="a\n")
    (piece,) = [each for each in shown if each[0]]
    assert piece[0] == "A" and piece[1] is not None and piece[1] != PROMPT_COLOUR


def test_without_colours_the_text_is_as_always(run):
    result = run("generate", "-p", "ab", "--show-probabilities", "--echo")
    assert result.stdout == "abAB\n" and "shows no colours" in result.stderr


@pytest.mark.origin("RLLaMA: `--quiet`")
def test_quiet_prints_the_text_alone(run):
    result = run("generate", "-p", "ab", "--quiet", "--show-probabilities")
    assert (result.stdout, result.stderr) == ("AB\n", "")
    assert run("chat", "-q", said="ab\n").stderr == ""
    refused = run("generate", "-q", "-p", "a" * 300)
    assert refused.exit_code == 2 and "300 tokens" in refused.stderr


def test_placeholders_of_a_prompt_are_replaced(run, model):
    Path("p.txt").write_text("{who} is {{x}}\n")
    run("generate", "--prompt-file", "p.txt", "--variable", "who=Ann = B")
    run("generate", "--prompt-file", "p.txt")
    assert model.prompts == ["Ann = B is {x}", "{who} is {{x}}"]


def test_a_system_message_of_a_single_question(run, model):
    run("generate", "-p", "hi", "--chat", "--system", "Be brief.")
    assert model.prompts == ["[system]Be brief.[user]hi[assistant]"]


NAMES = ("--user-name", "Ann", "--bot-name", "Bo")


@pytest.mark.origin("ExLlama: names of user and bot, a prompt file with placeholders")
def test_a_conversation_with_names_is_lines_of_text(run, model):
    Path("p.txt").write_text("{bot_name} helps {username} in {place}.\n")
    model.answer = lambda _: b" Yes.\nAnn: more"
    result = run(
        *("chat", *NAMES, "--prompt-file", "p.txt", "--variable", "place=Oslo"), said="hi\nho\n"
    )
    assert result.stdout == "Bo: Yes.\nBo: Yes.\n"
    assert model.prompts == [
        "Bo helps Ann in Oslo.\nAnn: hi\nBo:",
        "Bo helps Ann in Oslo.\nAnn: hi\nBo: Yes.\nAnn: ho\nBo:",
    ]


@pytest.mark.origin("ExLlama: replies of several paragraphs")
def test_without_newline_the_turn_ends_at_the_users_name(run, model):
    model.answer = lambda _: b" One.\nTwo.\nAnn: more"
    result = run("chat", *NAMES, "--no-newline", said="hi\nho\n")
    assert result.stdout == "Bo: One.\nTwo.\n" * 2
    assert model.prompts[1] == "Ann: hi\nBo: One.\nTwo.\nAnn: ho\nBo:"


@pytest.mark.origin("ExLlama: the bot speaks first")
def test_the_bot_may_speak_first_and_the_user_from_the_command_line(run, model):
    model.answer = lambda _: b" Yes.\n"
    run("chat", *NAMES, "--bot-first", "--first", "hi")
    assert model.prompts == ["Bo:", "Bo: Yes.\nAnn: hi\nBo:"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "-p", "a", "--system", "b"], "it needs --chat"),
        (["generate", "-p", "a", "--json", "--echo"], "without --echo"),
        (
            ["generate", "-p", "a", "--beams", "2", "--show-probabilities"],
            "--beams prints no token",
        ),
        (["generate", "-p", "{b}", "--variable", "a=1"], "expected one of {a}"),
        (["generate", "-p", "a", "--variable", "1"], "expected NAME=VALUE"),
        (["chat", "--bot-first"], "need --user-name"),
        (["chat", "--no-newline"], "need --user-name"),
        (["chat", "--variable", "a=1"], "needs --prompt-file"),
        (["chat", *NAMES, "--prefix", "Q"], "without --prefix"),
        (["chat", *NAMES, "--system", "a"], "without --system"),
        (["chat", *NAMES, "--format", "chatml"], "no --format but plain"),
        (["chat", "--prompt", "a", "--prompt-file", "p.txt"], "one beginning"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, model, arguments, words):
    Path("p.txt").write_text("x")
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert model.loaded == []
