import json
import readline
import signal

import pytest

from jaxllama.cli import chat
from jaxllama.cli.completing import CompletionWords, tab_completes
from jaxllama.errors import BadHeader, RequestError
from jaxllama.llm import LLM


def talk(run, *lines: str, options=()):
    return run("chat", *options, said="".join(f"{line}\n" for line in lines))


def test_turns_follow_each_other(run, model):
    result = talk(run, "hi", "there")
    assert result.exit_code == 0
    assert result.stdout == "HI\nTHERE\n"
    assert model.prompts == [
        "[user]hi[assistant]",
        "[user]hi[assistant]HI[user]there[assistant]",
    ]


def test_a_system_message_comes_first(run, model):
    talk(run, "hi", options=["--system", "Be brief."])
    assert model.prompts == ["[system]Be brief.[user]hi[assistant]"]


def test_knobs_hold_for_every_answer(run):
    assert talk(run, "hi", "you", options=["-n", "1"]).stdout == "H\nY\n"


def test_blank_lines_ask_nothing(run):
    assert talk(run, "", "   ", "hi").stdout == "HI\n"


def test_undo_forgets_the_last_question_and_its_answer(run, model):
    talk(run, "one", "two", "/undo", "three")
    assert model.prompts[-1] == "[user]one[assistant]ONE[user]three[assistant]"


def test_undo_of_nothing_is_fine(run):
    assert "nothing to undo" in talk(run, "/undo").stderr


def test_retry_asks_the_last_question_again(run, model):
    result = talk(run, "one", "/retry")
    assert result.stdout == "ONE\nONE\n"
    assert set(model.prompts) == {"[user]one[assistant]"}


def test_retry_changes_a_given_seed(run, monkeypatch):
    seeds = []
    stream = chat.Conversation.stream

    def watched(self, llm, knobs):
        seeds.append(knobs["seed"])
        return stream(self, llm, knobs)

    monkeypatch.setattr(chat.Conversation, "stream", watched)
    talk(run, "one", "/retry", "two", options=["--seed", "7"])
    assert seeds == [7, 8, 8]


def test_edit_asks_something_else_in_its_place(run, model):
    talk(run, "one", "two", "/edit zwei", "three")
    assert model.prompts[-1] == (
        "[user]one[assistant]ONE[user]zwei[assistant]ZWEI[user]three[assistant]"
    )


@pytest.mark.parametrize("command", ["/retry", "/edit something"])
def test_there_must_be_a_question_to_ask_again(run, command):
    result = talk(run, command, "hi")
    assert "error: there is no question yet" in result.stderr
    assert result.stdout == "HI\n"


def test_edit_that_does_not_fit_keeps_the_old_answer(run, model):
    result = talk(run, "one", f"/edit {'a' * 300}", "two")
    assert "error: prompt has" in result.stderr
    assert model.prompts[-1] == "[user]one[assistant]ONE[user]two[assistant]"


def test_edit_without_text_needs_a_terminal(run):
    assert "/edit TEXT" in talk(run, "one", "/edit").stderr


def test_edit_without_text_offers_the_question_on_a_terminal(monkeypatch):
    offered = []
    monkeypatch.setattr(chat.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(chat.readline, "set_startup_hook", offered.append)
    monkeypatch.setattr(chat.readline, "insert_text", offered.append)
    monkeypatch.setattr("builtins.input", lambda _: offered[0]() or "changed")
    assert chat.edited("old") == "changed"
    assert offered[1:] == ["old", None]


def test_system_changes_what_the_model_is_told(run, model):
    result = talk(run, "/system Be kind.", "hi", "/system")
    assert model.prompts == ["[system]Be kind.[user]hi[assistant]"]
    assert result.stderr.count("system: Be kind.") == 2


def test_a_saved_conversation_can_be_loaded(run, model, tmp_path):
    talk(run, "one", "/save talk.json", options=["--system", "S"])
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [each["role"] for each in saved["messages"]] == ["system", "user", "assistant"]
    talk(run, "/load talk.json", "two")
    assert model.prompts[-1] == "[system]S[user]one[assistant]ONE[user]two[assistant]"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"messages": 3}',
        '{"messages": [3]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        "\udcff",
    ],
)
def test_what_is_no_conversation_is_not_loaded(run, model, tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content.encode(errors="surrogateescape"))
    result = talk(run, "one", "/load bad.json", "two")
    assert "error: bad.json" in result.stderr
    assert model.prompts[-1] == "[user]one[assistant]ONE[user]two[assistant]"


@pytest.mark.parametrize("command", ["/save", "/load", "/load missing.json", "/save no/such/place"])
def test_files_that_cannot_be_used_do_not_end_the_chat(run, command):
    result = talk(run, "one", command, "two")
    assert "error: " in result.stderr and result.stdout == "ONE\nTWO\n"


def test_stats_shows_the_last_answer_the_session_and_the_context(run):
    result = talk(run, "/stats", "hello", "hi", "/stats")
    assert "no answer yet" in result.stderr
    assert "last answer: 3 tokens" in result.stderr and "of 256 tokens" in result.stderr
    assert "session: 2 answers, 9 tokens" in result.stderr


def test_an_answer_that_was_stopped_counts(run, model):
    model.answer = lambda _: Pressing(b"abcdefghij")
    result = talk(run, "go on", "/stats")
    assert "stopped" in result.stderr and "session: 1 answer, " in result.stderr


def test_set_changes_a_knob_for_the_answers_that_follow(run):
    result = talk(run, "hello", "/set max-tokens 2", "hello", "/set max_tokens default", "hello")
    assert result.stdout == "HELLO\nHE\nHELLO\n"
    assert "max_tokens: 2" in result.stderr and "no knob is set" in result.stderr


def test_set_alone_shows_what_is_set(run):
    result = talk(run, "/set top_p 0.5", "/set", "/set top_k", options=["--temperature", "0.5"])
    assert result.stderr.count("top_p: 0.5") == 2 and "temperature: 0.5" in result.stderr
    assert "error: top_k is not set" in result.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set top_q 1", "unknown parameter 'top_q'; did you mean 'top_p'?"),
        ("/set top_q default", "unknown parameter 'top_q'"),
        ("/set top_p 7", "top_p is 7.0; it must lie in [0.0, 1.0]"),
        ("/set top_p much", "top_p is 'much'; expected a number"),
        ("/set ban_newlines perhaps", "ban_newlines is 'perhaps'; expected true or false"),
        ("/set preset sphynx", "unknown preset 'sphynx'; did you mean 'sphinx'?"),
    ],
)
def test_set_refuses_what_no_option_would_take(run, line, words):
    result = talk(run, line, "/set", "hi")
    assert words in result.stderr and "no knob is set" in result.stderr
    assert result.stdout == "HI\n"


def test_set_reads_lists_texts_and_mappings_as_options_do(run, monkeypatch):
    seen = []
    stream = chat.Conversation.stream
    monkeypatch.setattr(
        chat.Conversation,
        "stream",
        lambda self, llm, knobs: seen.append(dict(knobs)) or stream(self, llm, knobs),
    )
    talk(
        run,
        *("/set stop the end", "/set logit_bias 5=1.5,7=-2", "/set banned_tokens 1,2"),
        *("/set banned_strings a b", "/set ban_newlines true", "/set preset sphinx", "hi"),
    )
    assert seen == [
        {
            "stop": ("the end",),
            "logit_bias": {"5": 1.5, "7": -2.0},
            "banned_tokens": [1, 2],
            "banned_strings": ("a b",),
            "ban_newlines": True,
            "preset": "sphinx",
        }
    ]


def test_another_model_goes_on_with_the_conversation(run, model, tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"x")
    options = ["--context", "100", "--tokenizer", "of-the-first"]
    result = talk(run, "one", "/model other.gguf", "two", "/model", options=options)
    assert [each.get("tokenizer") for each in model.loaded] == ["of-the-first", None]
    assert [each["model"] for each in model.loaded] == [None, "other.gguf"]
    assert all(each["context"] == 100 for each in model.loaded)
    assert model.prompts[-1] == "[user]one[assistant]ONE[user]two[assistant]"
    assert result.stderr.count("model: other.gguf") == 2


def test_a_model_that_does_not_load_leaves_the_old_one(run, model, tmp_path, monkeypatch):
    (tmp_path / "bad.gguf").write_bytes(b"x")
    load = model.load

    def loading(**settings):
        if settings.get("model") == "bad.gguf":
            raise BadHeader("bad.gguf is no model")
        return load(**settings)

    monkeypatch.setattr(LLM, "load", loading)
    result = talk(run, "/model bad.gguf", "/model no/such/model", "hi")
    assert result.exit_code == 0 and result.stdout == "HI\n"
    assert "error: bad.gguf is no model" in result.stderr and "no/such/model" in result.stderr
    assert result.stderr.count("model: smollm2-135m") == 2
    assert len(model.loaded) == 2  # a name that leads nowhere costs no loading


WORDS = CompletionWords(
    commands=["set", "save", "model"],
    values={"top_p": ["default"], "top_k": ["default"], "preset": ["sphinx", "precise", "default"]},
    models=["smollm2-135m"],
)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("", []),
        ("hello", []),
        ("/s", ["/set ", "/save "]),
        ("/set top", ["top_p ", "top_k "]),
        ("/set preset p", ["precise"]),
        ("/set nothing ", []),
        ("/model smo", ["smollm2-135m"]),
        ("/save ta", ["talk.json", "tapes/"]),
        ("/save tapes/", ["tapes/a.json"]),
        ("/other ta", []),
    ],
)
def test_tab_completes_commands_knobs_presets_models_and_files(
    tmp_path, monkeypatch, line, completed
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tapes").mkdir()
    for name in ("talk.json", "tapes/a.json", "other.json"):
        (tmp_path / name).write_text("")
    assert WORDS.completions(line) == completed


def test_tab_asks_readline_for_the_line_before_the_cursor(monkeypatch):
    before = readline.get_completer()
    monkeypatch.setattr(readline, "get_line_buffer", lambda: "/set top_p")
    monkeypatch.setattr(readline, "get_endidx", lambda: 8)
    with tab_completes(WORDS.completions):
        complete = readline.get_completer()
        assert [complete("top", number) for number in range(3)] == ["top_p ", "top_k ", None]
    assert readline.get_completer() == before


def test_without_readline_nothing_is_completed(monkeypatch):
    monkeypatch.setattr("jaxllama.cli.completing.readline", None)
    monkeypatch.setattr(chat, "readline", None)
    monkeypatch.setattr(chat.sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(RequestError, match="/edit TEXT"):
        chat.edited("old")
    with tab_completes(WORDS.completions):
        pass


def test_the_words_of_a_session_are_every_command_knob_and_preset(run, monkeypatch):
    kept = []
    run_session = chat.Session.run
    monkeypatch.setattr(
        chat.Session, "run", lambda self: kept.append(self.vocabulary()) or run_session(self)
    )
    talk(run, "hi")
    (words,) = kept
    assert words.completions("/mo") == ["/model "]
    assert words.completions("/set mirostat_t") == ["mirostat_tau "]
    assert words.completions("/set preset sph") == ["sphinx"]
    assert words.completions("/set ban_newlines ") == ["true", "false", "default"]


def test_help_lists_every_command(run):
    text = talk(run, "/help").stderr
    for name in chat.COMMANDS:
        assert f"/{name}" in text
    assert "/save FILE" in text
    assert max(map(len, text.splitlines())) <= 80


def test_exit_leaves(run):
    assert talk(run, "/exit", "hi").stdout == ""


def test_unknown_commands_and_long_questions_do_not_end_the_chat(run, model):
    result = talk(run, "/bogus", "a" * 300, "hi")
    assert result.exit_code == 0
    assert "error: there is no command /bogus" in result.stderr
    assert "error: prompt has" in result.stderr
    assert model.prompts == ["[user]hi[assistant]"]


def test_an_answer_that_fails_is_taken_back(run, model):
    model.answer = lambda text: [None] if "bad" in text else b"ok"
    result = talk(run, "bad", "good")
    assert result.stdout.splitlines()[-1] == "ok"
    assert "error: " in result.stderr
    assert model.prompts[-1] == "[user]good[assistant]"


def test_two_slashes_begin_a_message(run, model):
    talk(run, "//etc")
    assert model.prompts == ["[user]/etc[assistant]"]


class Pressing(bytes):
    """An answer during which Ctrl-C is pressed, at its third token."""

    def __getitem__(self, at):
        if at == 2:
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(at)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(run, model):
    model.answer = lambda text: Pressing(b"abcdefghij") if "go" in text.split("]")[-2] else b"ok"
    before = signal.getsignal(signal.SIGINT)
    result = talk(run, "go on", "next")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert "abcdefghij".startswith(first) and 0 < len(first) < 10
    assert second == "ok"
    assert "stopped" in result.stderr
    assert model.prompts[-1] == f"[user]go on[assistant]{first}[user]next[assistant]"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_during_an_answer_interrupts_as_usual():
    with pytest.raises(KeyboardInterrupt), chat.ctrl_c_noted() as was_pressed:
        signal.raise_signal(signal.SIGINT)
        assert was_pressed()
        signal.raise_signal(signal.SIGINT)


def typing(monkeypatch, *lines):
    """What is typed, an exception standing for a key."""
    typed = iter(lines)

    def read_line(_):
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(chat, "read_line", read_line)


def test_ctrl_c_at_the_prompt_leaves_the_second_time(run, monkeypatch):
    typing(monkeypatch, "hi", KeyboardInterrupt(), KeyboardInterrupt())
    result = run("chat")
    assert result.exit_code == 130
    assert "Ctrl-C again" in result.stderr


def test_a_line_between_makes_it_the_first_time_again(run, monkeypatch):
    typing(monkeypatch, KeyboardInterrupt(), "hi", KeyboardInterrupt(), "/exit")
    assert run("chat").exit_code == 0


@pytest.mark.origin("RLLaMA: an interactive text with prefix, postfix and stops")
def test_a_plain_text_grows_by_what_is_typed_and_what_is_said(run, model):
    model.answer = lambda text: b" fine\nMe: " if "you" in text else b" hello\nMe: "
    options = ["--prompt", "A talk.\n", "--prefix", "Me: ", "--postfix", "\nBob:", "--stop", "Me:"]
    result = talk(run, "hi", "how are you", options=options)
    assert result.stdout == " hello\n\n fine\n\n"
    assert model.prompts == [
        "A talk.\nMe: hi\nBob:",
        "A talk.\nMe: hi\nBob: hello\nMe: how are you\nBob:",
    ]


def test_a_stop_text_that_the_prefix_does_not_repeat_stays(run, model):
    model.answer = lambda _: b" hello ### more"
    options = ["--prompt", "### ", "--postfix", "$", "--stop", "### "]
    talk(run, "hi", "you", options=options)
    assert model.prompts == ["### hi$", "### hi$ hello ### you$"]


@pytest.mark.parametrize("other", [["--system", "x"], ["--format", "chatml"]])
def test_a_plain_text_knows_no_roles(run, model, other):
    result = run("chat", "--prompt", "x", *other)
    assert result.exit_code == 2 and "plain text" in result.stderr
    assert model.loaded == []


def test_a_plain_text_may_name_the_plain_format(run, model):
    result = run("chat", "--postfix", "!", "--format", "plain", said="hi\n")
    assert (result.exit_code, model.prompts) == (0, ["hi!"])


def test_people_get_a_prompt_and_pipes_do_not(monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "")
    for is_terminal in (True, False):
        monkeypatch.setattr(chat.sys.stdin, "isatty", lambda answer=is_terminal: answer, False)
        chat.read_line()
    assert asked == ["> ", ""]


def test_a_full_context_leaves_out_the_oldest_messages(run, model):
    lines = [f"{number:02}" + "." * 30 for number in range(8)]
    result = talk(run, *lines, options=["--system", "Be brief."])
    assert "the context is full: the oldest 4 messages are left out" in result.stderr
    assert result.stdout.count("\n") == len(lines)
    assert model.prompts[-1].startswith("[system]Be brief.[user]07")


def test_a_full_context_may_stop_the_conversation(run):
    lines = [f"{number:02}" + "." * 30 for number in range(8)]
    result = talk(run, *lines, options=["--context-overflow", "error"])
    assert "error: prompt has" in result.stderr
    assert result.stdout.count("\n") < len(lines)


def test_a_plain_text_has_no_turns_to_leave_out(run):
    result = run("chat", "--prefix", "Q:", "--context-overflow", "drop_oldest")
    assert result.exit_code == 2
    assert "a plain text" in result.stderr
