"""Counts of tokens and seconds, of the last answer and of a whole chat, as text.

Kept by `jaxllama chat`. Knows `Usage` records, no terminal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxllama.request import Usage


@dataclass
class Figures:
    """The usage of the last answer, and sums over all answers of the session."""

    last: Usage | None = None
    answers: int = 0
    prompt: int = 0  # tokens of all prompts, including the tokens reused from the cache
    reused: int = 0
    generated: int = 0
    seconds: float = 0.0

    def add(self, usage: Usage) -> None:
        """Add the usage (token counts and times) of one more answer to the sums."""
        self.last = usage
        self.answers += 1
        self.prompt += usage.prompt
        self.reused += usage.reused
        self.generated += usage.generated
        self.seconds += usage.seconds

    def lines(self, context: int) -> Iterator[str]:
        """Yield lines of text about the last answer, all answers, and the use of the context.

        `context` is the size of the context window in tokens.
        """
        last = self.last
        if last is None:
            yield "no answer yet"
            return
        yield f"last answer: {timed(last.generated, last.seconds)}, {first_after(last)}"
        if last.drafted:
            yield f"its drafts: {drafts_text(last)}"
        yield f"its prompt: {last.prompt} tokens, {reused(last.reused)}"
        answers = "1 answer" if self.answers == 1 else f"{self.answers} answers"
        yield f"session: {answers}, {timed(self.generated, self.seconds)}"
        yield f"their prompts: {self.prompt} tokens, {reused(self.reused)}"
        yield f"context: {last.prompt + last.generated} of {context} tokens"


def summary(usage: Usage) -> str:
    """Return the token counts and times of one answer as one line of text."""
    prompt = f"prompt: {usage.prompt} tokens"
    if usage.reused:
        prompt += f", {reused(usage.reused)}"
    answer = f"answer: {timed(usage.generated, usage.seconds)}"
    words = [f"{prompt} | {answer}", first_after(usage), drafts_text(usage)]
    return ", ".join(filter(None, words))


def timed(tokens: int, seconds: float) -> str:
    """Return a number of generated tokens, the seconds since the request, and the rate, as text."""
    rate = f" ({tokens / seconds:.1f} tok/s)" if seconds > 0 else ""
    return f"{tokens} tokens in {seconds:.2f} s{rate}"


def first_after(usage: Usage) -> str:
    """Return the time to the first token as text."""
    return f"first token after {usage.seconds_to_first:.3f} s"


def drafts_text(usage: Usage) -> str:
    """Return how many drafted tokens were accepted, as text; empty if none were drafted."""
    return f"{usage.accepted} of {usage.drafted} drafted tokens accepted" if usage.drafted else ""


def reused(tokens: int) -> str:
    """Return the number of prompt tokens that were reused from the KV cache as text."""
    return f"{tokens} of them reused from the KV cache"
