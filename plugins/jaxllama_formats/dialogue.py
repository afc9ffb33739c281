"""A dialogue as people write one down; for models that were taught no format."""

from typing import ClassVar

from jaxllama_formats.turns import Turns


class Dialogue(Turns):
    """`User: ...` and `Assistant: ...`, each on a line."""

    name = "dialogue"
    stop = ("\nUser:",)
    around: ClassVar = {
        "system": ("System: ", "\n"),
        "user": ("User: ", "\n"),
        "assistant": ("Assistant: ", "\n"),
    }
