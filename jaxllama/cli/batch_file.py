"""The file of prompts of a batch: its lines, checked, as items to answer.

Read by `jaxllama batch`, twice: once to check all lines, once to answer them. With a template the
file has values, and the template makes prompts of them. Knows no models.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxllama.cli.placeholders import fill
from jaxllama.cli.remote import MESSAGES, PROMPT
from jaxllama.cli.results import Place
from jaxllama.cli.rows import CSV, kind_of, read_rows
from jaxllama.cli.terminal import as_json
from jaxllama.errors import InvalidParameter
from jaxllama.limits import check_number
from jaxllama.messages import as_message
from jaxllama.request import choice_seed

SHOWN = 5
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MOST = 100_000  # answers to one prompt
Check = Callable[[Mapping[str, Any]], None]  # raises InvalidParameter for bad knobs of a line


@dataclass(frozen=True)
class Item:
    """One answer to generate: a line of the input with its prompt and knobs, or its error."""

    index: int  # among the lines that are not blank
    line: int
    id: object = None
    kind: str = PROMPT
    content: Any = None
    knobs: Mapping[str, Any] | None = None
    error: str | None = None  # why the line cannot be answered
    count: int = 1  # answers to this prompt
    answer: int = 0  # which of them this is

    @property
    def place(self) -> Place:
        """The index of the prompt in the file, and the number of the answer to it."""
        return self.index, self.answer

    @property
    def digest(self) -> bytes:
        """A hash of the content, the knobs and the number of the answer: equal for equal items."""
        whole = as_json([self.kind, self.content, sorted((self.knobs or {}).items()), self.answer])
        return hashlib.sha256(whole.encode()).digest()


@dataclass(frozen=True)
class PromptTemplate:
    """A text with placeholders that makes a prompt, or a conversation, of the values of a row."""

    text: str
    is_chat: bool = False
    system: str | None = None

    def content(self, values: Mapping[str, object]) -> tuple[str, Any]:
        """Return the filled template: a kind (prompt or messages), and the content of that kind.

        `values` has the value of each placeholder, by the placeholder's name.
        """
        filled = fill(self.text, values)
        if not self.is_chat:
            return PROMPT, filled
        system = [] if self.system is None else [("system", fill(self.system, values))]
        turns = [*system, ("user", filled)]
        return MESSAGES, [{"role": role, "content": text} for role, text in turns]


class BatchFile:
    """The file of prompts, with the options that hold for every line."""

    def __init__(
        self, path: Path, check: Check, defaults: Mapping[str, Any], count: int = 1
    ) -> None:
        self.path = path
        self.check = check
        self.defaults = defaults
        self.count = count
        self.template: PromptTemplate | None = None

    def items(self) -> Iterator[Item]:
        """Yield the items in the order of the file, one for each answer that a line asks for.

        A line that cannot be used is yielded with its error; blank lines are skipped.
        """
        for item in self._lines():
            for answer in range(item.count):
                yield item if item.count == 1 else numbered(item, answer)

    def _lines(self) -> Iterator[Item]:
        if self.template is not None and kind_of(self.path) == CSV:
            for index, row in enumerate(read_rows(self.path)):
                yield self._item(Item(index, row.line), row.values)
            return
        index = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removeprefix(BYTE_ORDER_MARK).strip()
                if line:
                    yield self._item(Item(index, number), line)
                    index += 1

    def _item(self, item: Item, line: bytes | dict[str, Any]) -> Item:
        """Return `item` with the content and knobs of its line, or with the line's error.

        `line` is JSON text, or the values of a CSV row.
        """
        id_ = None
        try:
            fields = parse(line) if isinstance(line, bytes) else line
            id_ = fields.get("id")
            if self.template is not None:
                kind, content = self.template.content(fields)
                return replace(
                    item,
                    id=id_,
                    kind=kind,
                    content=content,
                    knobs=self.defaults,
                    count=self.count,
                )
            fields.pop("id", None)
            count = check_number("count", fields.pop("count", self.count), int, 1, MOST)
            kinds = [kind for kind in (PROMPT, MESSAGES) if kind in fields]
            if len(kinds) != 1:
                named = ", ".join(map(repr, fields)) or "nothing"
                raise InvalidParameter(f"holds {named}; expected one of prompt and messages")
            kind = kinds[0]
            content = fields.pop(kind)
            check_content(kind, content)
            self.check(fields)
        except InvalidParameter as error:
            return replace(item, id=id_, error=str(error))
        knobs = {**self.defaults, **fields}
        return replace(item, id=id_, kind=kind, content=content, knobs=knobs, count=int(count))


def numbered(item: Item, answer: int) -> Item:
    """Return a copy of an item for answer number `answer` to its prompt.

    If the item has a seed, the copy has one that is derived from it.
    """
    knobs = dict(item.knobs or {})
    if knobs.get("seed") is not None:
        knobs["seed"] = choice_seed(knobs["seed"], answer)
    return replace(item, knobs=knobs, answer=answer)


def read_ids_and_errors(items: Iterator[Item]) -> tuple[list[object], list[int], list[str]]:
    """Return three lists: each prompt's id, each prompt's number of answers, and error lines."""
    ids, counts, problems = [], [], []
    for item in items:
        if item.answer == 0:
            ids.append(item.id)
            counts.append(item.count)
        if item.error is not None:
            problems.append(f"line {item.line}: {item.error}")
    return ids, counts, problems


def parse(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object; raise InvalidParameter for anything else."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InvalidParameter('is no JSON object; expected {"prompt": ...}')
    return fields


def check_content(kind: str, content: Any) -> None:
    """Raise InvalidParameter unless `content` fits `kind`.

    A prompt is text or a list of token ids; messages are a list of at least one message.
    """
    if kind == MESSAGES:
        if not isinstance(content, list) or not content:
            raise InvalidParameter("messages is no list of {role, content}, or an empty one")
        for message in content:
            if not isinstance(message, dict):
                raise InvalidParameter(f"messages holds {message!r}; expected {{role, content}}")
            as_message(message)
        return
    is_ids = isinstance(content, list) and all(type(each) is int for each in content)
    if not is_ids and not isinstance(content, str):
        raise InvalidParameter("prompt is neither text nor a list of token ids")


def hidden_count(problems: list[str]) -> str:
    """Return "; and N more", where N counts the problems that are not shown; "" if none is.

    The first SHOWN (a constant) of `problems` are shown by the caller.
    """
    return f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
