"""Llama 2's chat format: `[INST]` around a user text, `<<SYS>>` inside the first one."""

from typing import ClassVar

from jaxllama_formats.turns import BEGIN, END, Turns


class Llama2(Turns):
    """`[INST] user [/INST] assistant`; every exchange has its own begin and end tokens."""

    name = "llama2"
    around: ClassVar = {
        "system": ("<<SYS>>\n", "\n<</SYS>>\n\n"),
        "user": ("[INST] ", " [/INST]"),
        "assistant": (" ", f" {END}{BEGIN}"),
    }
    folds_system = True
    names = ("llama-2", "llama2")
