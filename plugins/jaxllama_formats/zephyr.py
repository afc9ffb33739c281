"""The chat format of Zephyr and TinyLlama: a line with the role, the text, end-of-text."""

from typing import ClassVar

from jaxllama_formats.turns import END, Turns


class Zephyr(Turns):
    """`<|user|>`, a line break, the text, the end-of-text token."""

    name = "zephyr"
    stop = ("<|user|>",)
    around: ClassVar = {
        role: (f"<|{role}|>\n", f"{END}\n") for role in ("system", "user", "assistant")
    }
    names = ("zephyr", "tinyllama")
