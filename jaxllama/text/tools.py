"""Tool calls, read out of an answer's text while it comes.

Used by the server, one parser per answer, behind the tail. Knows how models spell calls
(`CallStyle`), not requests and not which tools there are.

A call whose name comes first is told while it is being written, any other one when it is whole.
What only looked like a call is text after all: nothing is lost. The result does not depend on how
the text falls into pieces, and no piece is scanned more than a few times.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from jaxllama.formats import CallStyle

OPENER, CLOSER = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"  # of Llama 3, where a file does not call it a control token
# OpenAI's rule for the name of a function. The lookahead keeps `$` from passing a last line break.
FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$(?!\n)"
MAX_HEAD = 1024  # characters of a call up to its arguments; beyond, the call is told when whole
ANY = ""
HEAD = ("{", '"name"', ":", ANY, ",", '"arguments"', ":", "{")
SPELLED = {'"parameters"': '"arguments"'}
TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[{}\[\]:,])', re.DOTALL)
UNFINISHED = re.compile(r'\s*(?:"(?:[^"\\]|\\.)*\\?)?', re.DOTALL)
FIRST_KEY = re.compile(r'\s*\{\s*"(?:name|type|function|arguments|parameters)"')
HERMES_END, LLAMA3_END = re.compile(rf"\s*\}}\s*{CLOSER}"), re.compile(r"\s*\}")
STRUCTURE = re.compile(r'["\\{}\[\]]')


@dataclass(frozen=True)
class CallDelta:
    """A piece of a call; the first one of each call has its name."""

    index: int
    name: str | None
    arguments: str  # JSON text


Piece = str | CallDelta


class ToolParser:
    """Splits one answer into text and calls."""

    def __init__(self, style: CallStyle) -> None:
        self.calls = 0
        self._hermes = style is CallStyle.HERMES
        self._mark = ""  # what announced a call, not told yet; nobody's if it is one
        self._closer = CLOSER if self._hermes else ""
        self._closing = HERMES_END if self._hermes else LLAMA3_END
        self._outside = self._text if self._hermes else self._start
        self._state = self._outside
        self._held = ""  # not told yet
        self._pieces: list[Piece] = []
        self._object = Balance()

    def push(self, text: str) -> list[Piece]:
        """What became clear with this text."""
        self._held += text
        while self._held and self._state():
            pass
        return self._take()

    def flush(self) -> list[Piece]:
        """What is left, now that the answer is over."""
        if self._state in (self._head, self._whole):
            if not self._told_whole(self._held):
                self._tell(self._mark + self._held)
        elif self._state != self._close and not (self.calls and self._held.isspace()):
            self._tell(self._held)
        self._held = ""
        return self._take()

    # States: each takes what it can from what is held, and says whether to go on.

    def _text(self) -> bool:
        """Outside calls; Hermes marks where one begins."""
        before, opener, after = self._held.partition(OPENER)
        if opener:
            said = before.rstrip()
            self._tell(said)
            self._mark = before[len(said) :] + opener
            self._held, self._state = after, self._head
            return True
        sure = len(self._held[: len(self._held) - overlap(self._held, OPENER)].rstrip())
        self._tell(self._held[:sure])
        self._held = self._held[sure:]
        return False

    def _start(self) -> bool:
        """Outside calls; a Llama 3 call is the first thing said, or follows another."""
        rest = self._held.lstrip("; \n\t\r" if self.calls else None)
        if not rest or (rest != PYTHON_TAG and PYTHON_TAG.startswith(rest)):
            return False
        rest = rest.removeprefix(PYTHON_TAG).lstrip()
        if rest.startswith("{"):
            self._mark = self._held[: len(self._held) - len(rest)]
            self._held, self._state = rest, self._head
        elif rest:
            self._state = self._rest
        return bool(rest)

    def _rest(self) -> bool:
        """Behind what can be calls: text to the end."""
        self._tell(self._held)
        self._held = ""
        return False

    def _head(self) -> bool:
        """The beginning of a call, up to where its arguments begin."""
        place, name = 0, ""
        for expected in HEAD:
            token = TOKEN.match(self._held, place)
            if token is None and UNFINISHED.fullmatch(self._held, place):
                return len(self._held) > MAX_HEAD and self._odd()
            if token is None or expected not in (ANY, SPELLED.get(token[1], token[1])):
                return self._odd()
            place = token.end()
            name = name if expected else text_in(token[1])
        if not is_function_name(name) or place > MAX_HEAD:
            return self._odd()
        self._begin(name, "")
        self._held, self._state = self._held[place - 1 :], self._arguments
        self._object = Balance()
        return True

    def _odd(self) -> bool:
        """Not the usual order: wait for all of it, if it can be a call at all."""
        likely = self._hermes or FIRST_KEY.match(self._held[:MAX_HEAD])
        if likely:
            self._object, self._state = Balance(), self._whole
        else:
            self._held, self._state = self._mark + self._held, self._rest
        return True

    def _arguments(self) -> bool:
        """Inside the arguments, told as they come."""
        end = self._object.feed(self._held)
        told = self._held[:end]
        self._pieces.append(CallDelta(self.calls - 1, None, told))
        self._held = self._held[len(told) :]
        if end is not None:
            self._state = self._close
        return end is not None

    def _close(self) -> bool:
        """Behind the arguments, where the call must end."""
        end = self._closing.match(self._held)
        if end is None and f"}}{self._closer}".startswith("".join(self._held.split())):
            return False
        self._held = self._held[end.end() if end else 0 :]
        self._state = self._outside if end or self._hermes else self._rest
        return True

    def _whole(self) -> bool:
        """A call that is told once it is whole."""
        if self._hermes:
            size = self._held.find(CLOSER)
        else:
            fed = self._object.fed
            end = self._object.feed(self._held[fed:])
            size = -1 if end is None else fed + end
        if size < 0:
            return False
        block, self._held = self._held[:size], self._held[size + len(self._closer) :]
        if self._told_whole(block):
            self._state = self._outside
        else:
            self._tell(self._mark + block + self._closer)
            self._state = self._text if self._hermes else self._rest
        return True

    # Telling.

    def _told_whole(self, block: str) -> bool:
        """Tell a whole call; False if the block is none."""
        try:
            call: Any = json.loads(block)
        except (ValueError, RecursionError):
            return False
        if not isinstance(call, dict):
            return False
        nothing: dict[str, Any] | None = (
            {} if self._hermes else None
        )  # marked as a call, it needs no arguments
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters", nothing))
        if not is_function_name(name) or not isinstance(arguments, dict):
            return False
        self._begin(name, json.dumps(arguments, ensure_ascii=False))
        return True

    def _begin(self, name: str, arguments: str) -> None:
        self._pieces.append(CallDelta(self.calls, name, arguments))
        self.calls += 1

    def _tell(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces


class Balance:
    """Finds where a JSON object that comes in pieces ends."""

    def __init__(self) -> None:
        self.fed = 0  # characters seen
        self._depth = 0
        self._quoted = self._escaped = False

    def feed(self, text: str) -> int | None:
        """How much of `text` belongs to the object; None if all, and it goes on."""
        self.fed += len(text)
        at = 1 if self._escaped and text else 0
        self._escaped = self._escaped and not text
        while found := STRUCTURE.search(text, at):
            at = found.end()
            if found[0] == "\\":
                self._escaped = self._quoted and at == len(text)
                at += self._quoted
            elif found[0] == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self._depth += 1 if found[0] in "{[" else -1
                if self._depth <= 0:
                    return at
        return None


def is_function_name(name: object) -> TypeGuard[str]:
    """Whether `name` is one that a client may give a function, and so may be sent back."""
    return isinstance(name, str) and re.search(FUNCTION_NAME, name) is not None


def overlap(text: str, word: str) -> int:
    """How much of the end of `text` may be the beginning of `word`."""
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0


def text_in(token: str) -> str:
    """The text of a JSON string, "" if it is none."""
    try:
        found = json.loads(token)
    except ValueError:
        return ""
    return found if isinstance(found, str) else ""
