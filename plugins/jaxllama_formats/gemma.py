"""Gemma's chat format: only the roles user and model have turns."""

from typing import ClassVar

from jaxllama_formats.turns import Turns

TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"


class Gemma(Turns):
    """`<start_of_turn>user`, the text, `<end_of_turn>`; a system text begins the next user turn."""

    name = "gemma"
    stop = (TURN_END,)
    around: ClassVar = {
        "system": ("", "\n\n"),
        "user": (f"{TURN}user\n", f"{TURN_END}\n"),
        "assistant": (f"{TURN}model\n", f"{TURN_END}\n"),
    }
    folds_system = True
    tokens = frozenset({TURN, TURN_END})
