"""What is shown while a model loads: bars on a terminal, lines anywhere else."""

import io
import sys
from types import SimpleNamespace

import pytest

import jaxllama
from jaxllama.cli.terminal import open_llm


class Screen(io.StringIO):
    """Standard error of a terminal, or of none."""

    def __init__(self, *, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def compiling(monkeypatch):
    """A model of which one of nine programs has to be compiled; returns what that shows."""

    def shown(*, is_terminal, pending=(), **loading):
        screen = Screen(is_terminal=is_terminal)
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")

        class Pretended:
            def load(self, progress, **_):
                for what, done in [("weights", 9), ("programs", 1), ("compiling decode", 1)]:
                    progress(what, done, 9)
                programs = SimpleNamespace(pending=pending)
                return SimpleNamespace(
                    engine=SimpleNamespace(programs=programs), close=lambda: None
                )

        monkeypatch.setattr(jaxllama, "LLM", Pretended())
        with open_llm(loading):
            pass
        return screen.getvalue()

    return shown


def test_without_a_terminal_what_is_compiled_is_a_line(compiling):
    shown = compiling(is_terminal=False)
    assert shown == "compiling, first start only: decode (2 of 9)...\n"


def test_without_a_cache_every_start_compiles(compiling):
    shown = compiling(is_terminal=False, compile_cache=False)
    assert shown == "compiling: decode (2 of 9)...\n"


def test_a_command_that_waits_for_a_program_says_so(compiling):
    shown = compiling(is_terminal=False, pending=("decode", "peek"))
    assert "compiling decode to its end, for the next start; Ctrl-C skips that" in shown


def test_a_terminal_has_a_bar_with_the_same_words(compiling):
    shown = compiling(is_terminal=True)
    assert "compiling, first start only: decode (2 of 9)" in shown
    assert "loading weights" in shown
