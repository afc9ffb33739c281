"""The chat format of DeepSeek V2 and V3."""

from typing import ClassVar

from jaxllama_formats.turns import END, Turns

USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"  # noqa: RUF001 - the bars are wide ones


class DeepSeek(Turns):
    """`<｜User｜>` and `<｜Assistant｜>` before texts; a system text has no mark."""  # noqa: RUF002

    name = "deepseek"
    stop = (USER,)
    around: ClassVar = {"system": ("", ""), "user": (USER, ""), "assistant": (ASSISTANT, END)}
    tokens = frozenset({USER, ASSISTANT})
