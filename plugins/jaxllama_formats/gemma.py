"""Gemma's chat format: turns of a user and a model, and of nobody else."""

from typing import ClassVar

from jaxllama_formats.turns import Turns

TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"


class Gemma(Turns):
    """`<start_of_turn>user`, the text, `<end_of_turn>`; the system opens the user's turn."""

    name = "gemma"
    stop = (TURN_END,)
    around: ClassVar = {
        "system": ("", "\n\n"),
        "user": (f"{TURN}user\n", f"{TURN_END}\n"),
        "assistant": (f"{TURN}model\n", f"{TURN_END}\n"),
    }
    folds_system = True
    tokens = frozenset({TURN, TURN_END})
