import importlib
import os
import subprocess
import sys

import click
import pytest

from jaxllama.cli.main import COMMANDS, main
from jaxllama.errors import (
    BadHeader,
    ConfigError,
    EngineStopped,
    InvalidParameter,
    KnobClash,
)

PYTHON = [sys.executable, "-W", "error", "-c"]
PROGRAM = "from jaxllama.cli.main import main; main(prog_name='jaxllama')"


def test_help_lists_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    for name, summary in COMMANDS.items():
        assert name in result.stdout and summary in result.stdout


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from jaxllama.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = [name for name in ('jax', 'numpy', 'rich') if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([*PYTHON, code], check=True, capture_output=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_of_its_own(run, name):
    assert importlib.import_module(f"jaxllama.cli.{name}").command.name == name
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {name}" in result.stdout


def test_without_arguments_the_help_is_shown(run):
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chatt"], "chatt"),
        (["generate", "--bogus"], "--bogus"),
        (["generate", "-p", "a", "--dtype", "int3"], "int3"),
        (["generate", "--prompt-file", "missing.txt"], "missing.txt"),
        (["perplexity"], "FILE"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_to_read_on(run, arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line and "--help)" in line


def raising(error: BaseException) -> click.Command:
    def fail() -> None:
        raise error

    return click.Command("version", callback=fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidParameter("top_p is 2"), 2),
        (BadHeader("not a\nmodel"), 2),
        (KnobClash("two samplers"), 2),
        (ConfigError("no such mesh"), 2),
        (EngineStopped("gone"), 1),
    ],
)
def test_errors_on_purpose_are_one_line_and_their_exit_code(run, monkeypatch, error, code):
    monkeypatch.setattr("jaxllama.cli.version.command", raising(error))
    result = run("version")
    assert result.exit_code == code
    assert result.stderr == f"error: {' '.join(str(error).split())}\n"


def test_errors_nobody_foresaw_keep_their_traceback(run, monkeypatch):
    monkeypatch.setattr("jaxllama.cli.version.command", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run("version")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_ends_with_130_and_no_words(run, monkeypatch, error):
    monkeypatch.setattr("jaxllama.cli.version.command", raising(error))
    result = run("version")
    assert result.exit_code == 130
    assert result.output.strip() == ""


def interrupted_twice() -> None:
    try:
        raise KeyboardInterrupt
    finally:
        raise EngineStopped("could not end what was begun")


def test_what_ctrl_c_breaks_on_its_way_out_is_not_reported(run, monkeypatch):
    monkeypatch.setattr(
        "jaxllama.cli.version.command", click.Command("v", callback=interrupted_twice)
    )
    result = run("version")
    assert (result.exit_code, result.output.strip()) == (130, "")


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [*PYTHON, PROGRAM, "version"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_version_names_what_it_runs_on(run):
    result = run("version")
    assert result.stdout.startswith("jaxllama ")
    assert "jax " in result.stdout and "Python " in result.stdout


def test_the_program_is_what_the_package_installs():
    (script,) = [
        point
        for point in importlib.metadata.entry_points(group="console_scripts")
        if point.name == "jaxllama"
    ]
    assert script.load() is main
