"""Mistral's chat format: a user text between `[INST]` and `[/INST]`."""

from typing import ClassVar

from jaxllama_formats.turns import END, Turns


class Mistral(Turns):
    """`[INST] user [/INST] assistant`; a system text begins the next user turn."""

    name = "mistral"
    around: ClassVar = {
        "system": ("", "\n\n"),
        "user": ("[INST] ", " [/INST]"),
        "assistant": (" ", END),
    }
    folds_system = True
    tokens = frozenset({"[INST]", "[/INST]"})
    names = ("mistral", "mixtral")
