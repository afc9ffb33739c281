"""Turns: what formats share in which every role has a text before and after what it says.

Subclassed by most formats of this folder. Knows no model; must not know tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

from jaxllama.errors import TemplateError
from jaxllama.formats import Message, ModelText, PromptFormat

# In the texts around a turn: the model's own begin-of-text and end-of-text tokens.
BEGIN, END = "{begin}", "{end}"


class Turns(PromptFormat):
    """A format that is a table: role -> (text before, text after).

    Subclasses say it in `around`. What a system message says goes before what the next user says,
    inside the user's turn, if `folds_system`; `preamble` stands where a conversation has none. An
    answer begins behind the text before the assistant's turns, without its last space: the space
    belongs to the first word.
    """

    around: ClassVar[Mapping[str, tuple[str, str]]]
    folds_system: ClassVar[bool] = False
    preamble: ClassVar[str] = ""
    tokens: ClassVar[frozenset[str]] = frozenset()  # a model that knows these wants this format
    names: ClassVar[tuple[str, ...]] = ()  # so does one whose name holds one of these

    def __init__(self, begin: str = "", end: str = "") -> None:
        self._around = {
            role: tuple(text.replace(BEGIN, begin).replace(END, end) for text in both)
            for role, both in self.around.items()
        }

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Whether its tokens or its name say so, and no template says better."""
        if model.template is not None:
            return False
        knows = bool(cls.tokens) and cls.tokens <= model.special
        return knows or any(name in model.name.lower() for name in cls.names)

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """With the model's begin-of-text and end-of-text tokens."""
        return cls(model.begin, model.end)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Turn after turn, and the head of the assistant's."""
        texts = [before + text + after for before, text, after in self._turns(messages)]
        if messages and messages[0].role != "system":
            texts.insert(0, self.preamble)
        if answer:
            texts.append(self._around["assistant"][0].rstrip(" "))
        return "".join(texts)

    def _turns(self, messages: Sequence[Message]) -> Iterator[tuple[str, str, str]]:
        """What stands before, in and behind each turn."""
        held = ""  # what a system said that no user's turn has taken in yet
        for message in messages:
            before, after = self._of(message.role)
            if self.folds_system and message.role == "system":
                held += before + message.content + after
                continue
            if message.role == "user":
                held, before = "", before + held
            yield before, message.content, after
        if held:
            before, after = self._around["user"]
            yield before, held, after

    def _of(self, role: str) -> tuple[str, ...]:
        if role not in self._around:
            raise TemplateError(
                f"prompt format {self.name!r} knows no role {role[:50]!r}; "
                f"expected one of {', '.join(self._around)}"
            )
        return self._around[role]
