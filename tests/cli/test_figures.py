"""The figures of a chat: sums that add up, and rates over the whole time of a request."""

from dataclasses import replace

from jaxllama.cli.figures import Figures, summary
from jaxllama.request import Usage

FIRST = Usage(prompt=40, reused=0, generated=10, seconds_to_first=0.5, seconds=1.0)
SECOND = Usage(prompt=60, reused=50, generated=30, seconds_to_first=0.1, seconds=3.0)


def test_without_an_answer_there_are_no_figures():
    assert list(Figures().lines(100)) == ["no answer yet"]


def test_the_last_answer_and_the_session_are_told_apart():
    figures = Figures()
    figures.add(FIRST)
    figures.add(SECOND)
    assert list(figures.lines(256)) == [
        "last answer: 30 tokens in 3.00 s (10.0 tok/s), first token after 0.100 s",
        "its prompt: 60 tokens, 50 of them reused from the KV cache",
        "session: 2 answers, 40 tokens in 4.00 s (10.0 tok/s)",
        "their prompts: 100 tokens, 50 of them reused from the KV cache",
        "context: 90 of 256 tokens",
    ]


def test_a_reused_prompt_has_no_rate_of_its_own():
    """Ten tokens computed in the time to the first token would look like 100 tok/s."""
    line = summary(SECOND)
    assert line == (
        "prompt: 60 tokens, 50 of them reused from the KV cache | "
        "answer: 30 tokens in 3.00 s (10.0 tok/s), first token after 0.100 s"
    )


def test_an_answer_in_no_time_has_no_rate():
    assert "tok/s" not in summary(Usage(prompt=1, reused=0, generated=1))


def test_drafts_are_counted_if_there_are_any():
    drafted = replace(SECOND, drafted=20, accepted=15)
    assert summary(drafted).endswith("0.100 s, 15 of 20 drafted tokens accepted")
    figures = Figures()
    figures.add(drafted)
    assert list(figures.lines(256))[1] == "its drafts: 15 of 20 drafted tokens accepted"
