"""Vicuna's chat formats: plain text with the name of the role before each message."""

from typing import ClassVar

from jaxllama_formats.turns import END, Turns


class Vicuna(Turns):
    """Version 1.1: `USER: ... ASSISTANT: ...`, all on one line."""

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
    """The first version: `### Human:` and `### Assistant:`, one line per message."""

    name = "vicuna0"
    stop = ("### Human:",)
    around: ClassVar = {
        "system": ("", "\n"),
        "user": ("### Human: ", "\n"),
        "assistant": ("### Assistant: ", "\n"),
    }
