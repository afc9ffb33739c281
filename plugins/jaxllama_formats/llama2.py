"""Llama 2's chat format: `[INST]` around what the user says, `<<SYS>>` inside the first."""

from typing import ClassVar

from jaxllama_formats.turns import BEGIN, END, Turns


class Llama2(Turns):
    """`[INST] user [/INST] assistant`; every exchange begins and ends a text of its own."""

    name = "llama2"
    around: ClassVar = {
        "system": ("<<SYS>>\n", "\n<</SYS>>\n\n"),
        "user": ("[INST] ", " [/INST]"),
        "assistant": (" ", f" {END}{BEGIN}"),
    }
    folds_system = True
    names = ("llama-2", "llama2")
