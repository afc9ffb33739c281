"""Turns: the base class of formats that put fixed texts before and after every message.

Subclassed by most formats of this folder. Knows no model; must not know tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

from jaxllama.errors import TemplateError
from jaxllama.formats import Message, ModelText, PromptFormat

# Placeholders in the texts around a message: the begin-of-text and end-of-text tokens.
BEGIN, END = "{begin}", "{end}"


class Turns(PromptFormat):
    """A format that is a table: role -> (text before, text after).

    Subclasses define the table in `around`. With `folds_system`, a system message is written at the
    beginning of the next user turn. `preamble` replaces a missing system message. An answer begins
    after the text that precedes assistant turns, without the last space of that text: tokenizers
    join the space to the first word.
    """

    around: ClassVar[Mapping[str, tuple[str, str]]]
    folds_system: ClassVar[bool] = False
    preamble: ClassVar[str] = ""
    # A model that has all these tokens uses this format.
    tokens: ClassVar[frozenset[str]] = frozenset()
    names: ClassVar[tuple[str, ...]] = ()  # so does a model whose name contains one of these

    def __init__(self, begin: str = "", end: str = "") -> None:
        self._around = {
            role: tuple(text.replace(BEGIN, begin).replace(END, end) for text in both)
            for role, both in self.around.items()
        }

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Say whether the tokens or the name match and the model has no chat template."""
        if model.template is not None:
            return False
        knows = bool(cls.tokens) and cls.tokens <= model.special
        return knows or any(name in model.name.lower() for name in cls.names)

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """Create the format with the model's begin-of-text and end-of-text tokens."""
        return cls(model.begin, model.end)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Write every turn; with `answer` also the text before the assistant's answer."""
        texts = [before + text + after for before, text, after in self._turns(messages)]
        if messages and messages[0].role != "system":
            texts.insert(0, self.preamble)
        if answer:
            texts.append(self._around["assistant"][0].rstrip(" "))
        return "".join(texts)

    def _turns(self, messages: Sequence[Message]) -> Iterator[tuple[str, str, str]]:
        """Yield three strings for each turn: text before it, its content and text after it.

        A system message is put before the next user turn if `folds_system` is set.
        """
        system = ""  # system texts that wait for the next user turn
        for message in messages:
            before, after = self._texts_around(message.role)
            if self.folds_system and message.role == "system":
                system += before + message.content + after
                continue
            if message.role == "user":
                system, before = "", before + system
            yield before, message.content, after
        if system:
            before, after = self._around["user"]
            yield before, system, after

    def _texts_around(self, role: str) -> tuple[str, ...]:
        if role not in self._around:
            raise TemplateError(
                f"prompt format {self.name!r} knows no role {role[:50]!r}; "
                f"expected one of {', '.join(self._around)}"
            )
        return self._around[role]
