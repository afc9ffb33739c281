"""Phi-3's chat format: a token for each role, `<|end|>` after each text."""

from typing import ClassVar

from jaxllama_formats.turns import Turns

TURN_END = "<|end|>"


class Phi3(Turns):
    """`<|user|>`, a line break, the text, `<|end|>`."""

    name = "phi3"
    stop = (TURN_END,)
    around: ClassVar = {
        role: (f"<|{role}|>\n", f"{TURN_END}\n") for role in ("system", "user", "assistant")
    }
    tokens = frozenset({"<|user|>", "<|assistant|>", TURN_END})
