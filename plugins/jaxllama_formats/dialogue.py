"""A written dialogue, for models that were trained on no chat format."""

from typing import ClassVar

from jaxllama_formats.turns import Turns


class Dialogue(Turns):
    """`User: ...` and `Assistant: ...`, one line per message."""

    name = "dialogue"
    stop = ("\nUser:",)
    around: ClassVar = {
        "system": ("System: ", "\n"),
        "user": ("User: ", "\n"),
        "assistant": ("Assistant: ", "\n"),
    }
