"""Parses tool calls in an answer's text while the text arrives.

Used by the server, one parser per answer, after the tail. Knows how models write calls
(`CallStyle`), not requests and not which tools exist.

A call whose name comes first is emitted while it arrives, any other call when it is complete. Text
that only looked like a call is emitted as text, so no text is lost. The result does not depend on
how the text is split into pieces, and no piece is scanned more than a few times.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from jaxllama.formats import CallStyle

OPENER, CLOSER = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"  # of Llama 3; in some files it is no control token
# OpenAI's rule for the name of a function. The lookahead keeps `$` from passing a last line break.
FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$(?!\n)"
MAX_HEAD = 1024  # characters of a call before its arguments; if longer, emit the call when complete
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
    """A piece of a call; the first piece of each call has its name."""

    index: int
    name: str | None
    arguments: str  # JSON text


Piece = str | CallDelta


class ToolParser:
    """Splits one answer into text and tool calls."""

    def __init__(self, style: CallStyle) -> None:
        self.calls = 0
        self._hermes = style is CallStyle.HERMES
        self._mark = ""  # text that announced a call; emitted only if no call follows
        self._closer = CLOSER if self._hermes else ""
        self._closing = HERMES_END if self._hermes else LLAMA3_END
        self._outside = self._read_text if self._hermes else self._read_start
        self._state = self._outside
        self._held = ""  # text not emitted yet
        self._pieces: list[Piece] = []
        self._object = Balance()

    def push(self, text: str) -> list[Piece]:
        """Read the next text of the answer; return the new pieces of text and tool calls.

        Text that may be the start of a tool call is held back until more text decides.
        """
        self._held += text
        while self._held and self._state():
            pass
        return self._take_pieces()

    def flush(self) -> list[Piece]:
        """End the answer; return the pieces of text and tool calls that were held back."""
        if self._state in (self._read_head, self._read_whole):
            if not self._emit_whole_call(self._held):
                self._emit_text(self._mark + self._held)
        elif self._state != self._read_close and not (self.calls and self._held.isspace()):
            self._emit_text(self._held)
        self._held = ""
        return self._take_pieces()

    # States: each consumes text from `_held` and returns True if parsing can continue.

    def _read_text(self) -> bool:
        """Emit text up to a Hermes `<tool_call>`; return True if there is one."""
        before, opener, after = self._held.partition(OPENER)
        if opener:
            said = before.rstrip()
            self._emit_text(said)
            self._mark = before[len(said) :] + opener
            self._held, self._state = after, self._read_head
            return True
        sure = len(self._held[: len(self._held) - overlap(self._held, OPENER)].rstrip())
        self._emit_text(self._held[:sure])
        self._held = self._held[sure:]
        return False

    def _read_start(self) -> bool:
        """Look for a Llama 3 call, which must start the answer or follow another call.

        Return False if more text must arrive to decide.
        """
        rest = self._held.lstrip("; \n\t\r" if self.calls else None)
        if not rest or (rest != PYTHON_TAG and PYTHON_TAG.startswith(rest)):
            return False
        rest = rest.removeprefix(PYTHON_TAG).lstrip()
        if rest.startswith("{"):
            self._mark = self._held[: len(self._held) - len(rest)]
            self._held, self._state = rest, self._read_head
        elif rest:
            self._state = self._read_rest
        return bool(rest)

    def _read_rest(self) -> bool:
        """Emit all held text unchanged, since no tool call can follow; return False."""
        self._emit_text(self._held)
        self._held = ""
        return False

    def _read_head(self) -> bool:
        """Read a call up to the start of its arguments; return False if more text must arrive."""
        place, name = 0, ""
        for expected in HEAD:
            token = TOKEN.match(self._held, place)
            if token is None and UNFINISHED.fullmatch(self._held, place):
                return len(self._held) > MAX_HEAD and self._await_whole_call()
            if token is None or expected not in (ANY, SPELLED.get(token[1], token[1])):
                return self._await_whole_call()
            place = token.end()
            name = name if expected else text_in(token[1])
        if not is_function_name(name) or place > MAX_HEAD:
            return self._await_whole_call()
        self._begin_call(name, "")
        self._held, self._state = self._held[place - 1 :], self._read_arguments
        self._object = Balance()
        return True

    def _await_whole_call(self) -> bool:
        """Choose how to read a call whose keys are in an unusual order; return True.

        Text that looks like a call is buffered until it is complete; other text is emitted.
        """
        likely = self._hermes or FIRST_KEY.match(self._held[:MAX_HEAD])
        if likely:
            self._object, self._state = Balance(), self._read_whole
        else:
            self._held, self._state = self._mark + self._held, self._read_rest
        return True

    def _read_arguments(self) -> bool:
        """Emit the arguments of a call while they arrive; return True at their end."""
        end = self._object.feed(self._held)
        told = self._held[:end]
        self._pieces.append(CallDelta(self.calls - 1, None, told))
        self._held = self._held[len(told) :]
        if end is not None:
            self._state = self._read_close
        return end is not None

    def _read_close(self) -> bool:
        """Read the end of a call after its arguments; return False if more text must arrive."""
        end = self._closing.match(self._held)
        if end is None and f"}}{self._closer}".startswith("".join(self._held.split())):
            return False
        self._held = self._held[end.end() if end else 0 :]
        self._state = self._outside if end or self._hermes else self._read_rest
        return True

    def _read_whole(self) -> bool:
        """Emit the held tool call if it is complete; return False if more text must arrive.

        Text that turns out to be no valid call is emitted as text.
        """
        if self._hermes:
            size = self._held.find(CLOSER)
        else:
            fed = self._object.fed
            end = self._object.feed(self._held[fed:])
            size = -1 if end is None else fed + end
        if size < 0:
            return False
        block, self._held = self._held[:size], self._held[size + len(self._closer) :]
        if self._emit_whole_call(block):
            self._state = self._outside
        else:
            self._emit_text(self._mark + block + self._closer)
            self._state = self._read_text if self._hermes else self._read_rest
        return True

    # Emitting.

    def _emit_whole_call(self, block: str) -> bool:
        """Emit the call whose JSON text is `block`; return False if it is no call."""
        try:
            call: Any = json.loads(block)
        except (ValueError, RecursionError):
            return False
        if not isinstance(call, dict):
            return False
        # The Hermes opener marks it as a call even without arguments.
        nothing: dict[str, Any] | None = {} if self._hermes else None
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters", nothing))
        if not is_function_name(name) or not isinstance(arguments, dict):
            return False
        self._begin_call(name, json.dumps(arguments, ensure_ascii=False))
        return True

    def _begin_call(self, name: str, arguments: str) -> None:
        self._pieces.append(CallDelta(self.calls, name, arguments))
        self.calls += 1

    def _emit_text(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def _take_pieces(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces


class Balance:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self.fed = 0  # characters seen
        self._depth = 0
        self._quoted = self._escaped = False

    def feed(self, text: str) -> int | None:
        """Read the next piece of a JSON object; return how many characters of `text` belong to it.

        Return None if the object does not end in `text`.
        """
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
    """Say whether `name` is a string that OpenAI's rule allows as the name of a function."""
    return isinstance(name, str) and re.search(FUNCTION_NAME, name) is not None


def overlap(text: str, word: str) -> int:
    """Return the length of the longest end of `text` that is a proper prefix of `word`."""
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0


def text_in(token: str) -> str:
    """Return the text of a JSON string; "" if `token` is no JSON string."""
    try:
        found = json.loads(token)
    except ValueError:
        return ""
    return found if isinstance(found, str) else ""
