"""Mistral's chat format: `[INST]` around what the user says, nothing around the answer."""

from typing import ClassVar

from jaxllama_formats.turns import END, Turns


class Mistral(Turns):
    """`[INST] user [/INST] assistant`; what the system says opens the user's turn."""

    name = "mistral"
    around: ClassVar = {
        "system": ("", "\n\n"),
        "user": ("[INST] ", " [/INST]"),
        "assistant": (" ", END),
    }
    folds_system = True
    tokens = frozenset({"[INST]", "[/INST]"})
    names = ("mistral", "mixtral")
