"""A start says what it does: each program that has to be compiled, and what goes on for long."""

import pytest

from jaxllama.startup import SILENCE, Startup, describe


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


def test_each_program_that_has_to_be_compiled_gets_a_line(lines):
    startup = Startup(lines.append)
    for what, done in [("programs", 0), ("programs", 1), ("compiling decode", 1), ("programs", 2)]:
        startup.report(what, done, 9)
    assert lines == ["compiling, first start only: decode (2 of 9)..."]


def test_programs_that_are_not_kept_are_not_called_the_first_start_only(lines):
    Startup(lines.append, keeps_programs=False).report("compiling decode", 1, 9)
    assert lines == ["compiling: decode (2 of 9)..."]


def test_a_start_without_compiling_says_nothing(lines):
    startup = Startup(lines.append)
    for done in range(10):
        startup.report("weights", done, 9)
        startup.report("programs", done, 9)
        startup.remind()
    assert lines == []


def test_what_goes_on_for_long_is_said_again_and_again(lines, clock):
    startup = Startup(lines.append, clock=clock)
    startup.report("compiling decode", 1, 9)
    for _ in range(27):
        clock.now += 1
        startup.remind()
    assert lines[1:] == ["still compiling decode, 10 s", "still compiling decode, 20 s"]


def test_no_silence_is_longer_than_ten_seconds(clock):
    said = []
    startup = Startup(lambda _: said.append(clock.now), clock=clock)
    startup.report("weights", 0, 300)
    for second in range(1, 120):
        clock.now += 1
        startup.report("weights", second, 300)
        startup.remind()
    assert said == [110.0 + SILENCE * i for i in range(len(said))]
    assert len(said) == 11


def test_a_long_stage_says_how_far_it_has_come(lines, clock):
    startup = Startup(lines.append, clock=clock)
    startup.report("weights", 0, 300)
    clock.now += SILENCE
    startup.report("weights", 75, 300)
    startup.remind()
    assert lines == ["still loading weights (25 %), 10 s"]


def test_a_download_is_named_with_its_size_when_it_begins(lines, clock):
    startup = Startup(lines.append, clock=clock)
    startup.report("downloading x.gguf, 98 MB", 0, 100)
    startup.report("downloading x.gguf, 98 MB", 50, 100)
    clock.now += SILENCE
    startup.remind()
    assert lines == ["downloading x.gguf, 98 MB...", "still downloading x.gguf, 98 MB (50 %), 10 s"]


def test_a_thread_reminds_until_the_start_is_over(lines, clock, monkeypatch):
    monkeypatch.setattr("jaxllama.startup.SECONDS_PER_CHECK", 0.001)
    startup = Startup(lines.append, clock=clock)
    with startup:
        startup.report("compiling decode", 1, 9)
        clock.now += SILENCE
        while len(lines) < 2:
            pass
    assert startup.stage is None
    assert not startup._thread.is_alive()


def test_other_stages_are_named_by_what_they_do():
    assert describe("weights", 1, 2) == "loading weights"
    assert describe("perplexity", 1, 2) == "perplexity"
