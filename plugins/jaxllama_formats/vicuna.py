"""Vicuna's chat formats: speakers named in the text."""

from typing import ClassVar

from jaxllama_formats.turns import END, Turns


class Vicuna(Turns):
    """Version 1.1: `USER: ... ASSISTANT: ...`, all in one line."""

    name = "vicuna"
    stop = ("USER:",)
    around: ClassVar = {
        "system": ("", " "),
        "user": ("USER: ", " "),
        "assistant": ("ASSISTANT: ", END),
    }
    preamble = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
    )
    names = ("vicuna",)


class Vicuna0(Turns):
    """The first version: `### Human:` and `### Assistant:`, each on a line."""

    name = "vicuna0"
    stop = ("### Human:",)
    around: ClassVar = {
        "system": ("", "\n"),
        "user": ("### Human: ", "\n"),
        "assistant": ("### Assistant: ", "\n"),
    }
