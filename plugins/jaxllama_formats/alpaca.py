"""Alpaca's format: an instruction and a response under headings."""

from typing import ClassVar

from jaxllama_formats.turns import END, Turns


class Alpaca(Turns):
    """`### Instruction:` and `### Response:`; a system message replaces the preamble."""

    name = "alpaca"
    stop = ("### Instruction:",)
    around: ClassVar = {
        "system": ("", "\n\n"),
        "user": ("### Instruction:\n", "\n\n"),
        "assistant": ("### Response:\n", f"{END}\n\n"),
    }
    preamble = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n"
    )
    names = ("alpaca",)
