"""Colours of tokens by their probability, for terminals: the options, and the colours.

Used by `jaxllama generate` and `jaxllama chat`. Without colours the text stays as it is.
"""

import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from jaxllama.cli.terminal import note, show
from jaxllama.completion import Delta
from jaxllama.request import TokenLogprobs

Colour = tuple[int, int, int]

MODEL, SAMPLED = "model", "sampled"  # whose probability: the model's, or the one it was drawn with
PROMPT_COLOUR: Colour = (128, 128, 255)

show_probabilities = click.option(
    "--show-probabilities",
    type=click.Choice([MODEL, SAMPLED]),
    is_flag=False,
    flag_value=MODEL,
    help="Colour each token by its probability, from green (unlikely) to red (certain): under the "
    "model, or as it was drawn after all samplers [default with the option alone: model].",
)


class TokenColours:
    """Prints an answer with a colour for each token."""

    def __init__(self, whose: str | None) -> None:
        self.whose = whose

    def knobs(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the knobs (request parameters) for a request with coloured tokens.

        If colours are on, it requests the log-probabilities that the colours need.
        """
        return dict(knobs) if self.whose is None else {"logprobs": 0, **knobs}

    def check(self) -> None:
        """Print a note if colours were asked for and standard output cannot show them."""
        if self.whose is not None and not has_colours():
            note("standard output shows no colours here; --logprobs with --json has the numbers")

    def show(self, delta: Delta) -> None:
        """Print a piece of an answer, in the colour of its token if colours are on."""
        colour = None
        if self.whose is not None and delta.logprobs is not None and has_colours():
            colour = colour_of(delta.logprobs, self.whose)
        show(delta.text, colour)

    def show_prompt(self, text: str) -> None:
        """Print the prompt, in a colour of its own if colours are on."""
        show(text, PROMPT_COLOUR if self.whose is not None and has_colours() else None)


def colour_of(found: TokenLogprobs, whose: str) -> Colour:
    """Return the RGB colour of a token: the likelier, the more red and the less green.

    `found` has the token's log-probabilities. `whose` says which one counts: MODEL, that of the
    model, or SAMPLED, that with which the token was drawn after all samplers.
    """
    logprob = found.logprob if whose == MODEL else found.sampled
    share = round(255 * math.exp(min(logprob, 0.0)))
    return (128 + share // 2, 255 - share // 2, 128)


def has_colours() -> bool:
    """Say whether standard output is a terminal whose colours are not switched off."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not is_plain
