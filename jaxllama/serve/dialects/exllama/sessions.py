"""Sessions of ExLlama's web UI: conversations with their settings, kept on disk.

A session is one JSON file, in the form that ExLlama writes. Names are made safe before they become
file names. Knows no HTTP and starts no generation.
"""

import logging
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import msgspec

from jaxllama.errors import InvalidParameter
from jaxllama.serve.whole_files import storing, write_whole

logger = logging.getLogger(__name__)

LAST = "_last_session"  # the file with the name of the current session
UNTITLED = "Untitled session"
SAFE = frozenset(" .()-,_!@")
LONGEST_NAME = 100
MOST_SESSIONS, MOST_BLOCKS, MOST_PARTICIPANTS = 1000, 2048, 8
MOST_CHARACTERS = 256 << 10  # of all texts of a session
LONGEST_FILE = 8 << 20  # bytes


# How a room's prompt is made: by the model's prompt format, or as a script with names.
RoomStyle = Literal["chat", "script"]


def new_uuid() -> str:
    """Return a new random id for a message of a session."""
    return secrets.token_hex(16)


class SessionBlock(msgspec.Struct):
    """Text of one participant; without an author, other text."""

    author: str | None
    text: str
    uuid: str = msgspec.field(default_factory=new_uuid)


class RoomSpeaker(msgspec.Struct, kw_only=True):
    """The settings of a room's participant: prompt and sampling; ExLlama does not read them."""

    system: str = ""  # the speaker's own system prompt
    colour: int = 0  # place in the page's palette
    model: str = ""  # a model or adapter; "": the server's own
    knobs: dict[str, Any] = msgspec.field(default_factory=dict)  # sampling, of requests


class ExLlamaSession(msgspec.Struct, kw_only=True):
    """A conversation and its settings, as ExLlama saves them, and what rooms add."""

    unsaved: bool = False
    fixed_prompt: SessionBlock = msgspec.field(default_factory=lambda: SessionBlock(None, ""))
    participants: list[str] = msgspec.field(default_factory=lambda: ["User", "Chatbort"])
    keep_fixed_prompt: bool = True
    history: list[SessionBlock] = msgspec.field(default_factory=list)
    temperature: float = 0.95
    top_p: float = 0.75
    min_p: float = 0.0
    top_k: int = 0
    typical: float = 0.25
    break_on_newline: bool = True
    max_response_tokens: int = 512
    chunk_size: int = 128
    token_repetition_penalty_max: float = 1.15
    token_repetition_penalty_sustain: int = 2048
    token_repetition_penalty_decay: int = 512
    speakers: dict[str, RoomSpeaker] = msgspec.field(default_factory=dict)
    style: RoomStyle = "chat"

    def find(self, uuid: str) -> SessionBlock:
        """Return the message, or the fixed prompt, with this uuid.

        Raises InvalidParameter if there is none.
        """
        for block in (self.fixed_prompt, *self.history):
            if block.uuid == uuid:
                return block
        raise InvalidParameter(f"there is no block {uuid[:64]!r}", "uuid")

    def check(self) -> None:
        """Raise InvalidParameter if the texts of the session exceed MOST_CHARACTERS together."""
        blocks = (self.fixed_prompt, *self.history)
        count = sum(len(block.text) + len(block.author or "") for block in blocks)
        count += len(msgspec.json.encode(self.speakers))
        if count > MOST_CHARACTERS:
            raise InvalidParameter(
                f"the session has {count} characters; at most {MOST_CHARACTERS} are kept: delete "
                f"some blocks, or begin a new session",
                "text",
            )

    def add(self, author: str | None, text: str) -> SessionBlock:
        """Append a message to the history, and return it.

        `author` is a participant's name; None: text without an author. Raises InvalidParameter if
        the history is full.
        """
        if len(self.history) >= MOST_BLOCKS:
            raise InvalidParameter(
                f"the session has {MOST_BLOCKS} blocks, as many as it may; delete some", "text"
            )
        block = SessionBlock(author, text)
        self.history.append(block)
        return block


class SessionStore:
    """The folder of all sessions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of all sessions, sorted."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def last(self) -> str | None:
        """Return the name of the session that was used last; None if there is none."""
        try:
            name = Path((self._folder / LAST).read_text(encoding="utf-8").strip()).stem
        except OSError:
            return None
        return name if name in self.names() else None

    def unused_name(self, taken: Collection[str] = ()) -> str:
        """Return a name for a new session that no saved session has, and that is not in `taken`."""
        names, number = {*self.names(), *taken}, 1
        name = UNTITLED
        while name in names:
            number += 1
            name = f"{UNTITLED} ({number})"
        return name

    def load(self, name: str) -> ExLlamaSession:
        """Read a session from its file; raise InvalidParameter if it is missing or damaged."""
        path = self._path(name)
        try:
            if path.stat().st_size > LONGEST_FILE:
                raise InvalidParameter(f"session {name!r} is larger than {LONGEST_FILE} bytes")
            return msgspec.json.decode(path.read_bytes(), type=ExLlamaSession)
        except OSError as error:
            raise InvalidParameter(f"there is no session {name[:100]!r}", "session_name") from error
        except msgspec.DecodeError as error:
            raise InvalidParameter(f"session {name!r} is damaged: {error}") from error

    def save(self, name: str, session: ExLlamaSession) -> None:
        """Write a session, and note it as the last one used; a crash leaves the old file.

        Raises CannotStore if the disk does not take it.
        """
        path = self._path(name)
        with storing():
            self._folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() and len(self.names()) >= MOST_SESSIONS:
            raise InvalidParameter(f"there are {MOST_SESSIONS} sessions; delete some")
        write_whole(path, msgspec.json.format(msgspec.json.encode(session), indent=4))
        write_whole(self._folder / LAST, str(path).encode())

    def rename(self, old: str, new: str, session: ExLlamaSession) -> None:
        """Save a session under the name `new`, and delete the file with the name `old`.

        Raises InvalidParameter if a session with the new name exists already.
        """
        self.check_unused(new, "new_name")
        self.save(new, session)
        self._path(old).unlink(missing_ok=True)

    def check_unused(self, name: str, field: str) -> None:
        """Raise InvalidParameter if a saved session has this name.

        `field` is the request's field that holds the name, for the error.
        """
        if self._path(name).exists():
            raise InvalidParameter(f"session {name!r} exists already", field)

    def delete(self, name: str) -> None:
        """Delete a session; raises InvalidParameter if there is none."""
        path = self._path(name)
        if not path.exists():
            raise InvalidParameter(f"there is no session {name[:100]!r}", "session")
        path.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{safe_name(name)}.json"


def safe_name(name: str) -> str:
    """Return a session's name without the characters that are special in file names.

    Raises InvalidParameter if nothing is left.
    """
    kept = "".join(each for each in name if each.isalnum() or each in SAFE)
    kept = kept.strip().lstrip(".")[:LONGEST_NAME]
    if not kept:
        raise InvalidParameter(
            f"session name {name[:100]!r} has no letter or digit; choose another", "session_name"
        )
    return kept


def settings_of(session: ExLlamaSession) -> dict[str, Any]:
    """Return the sampling settings of a session, by the names that the web UI uses."""
    fields: dict[str, Any] = msgspec.to_builtins(session)
    others = ("unsaved", "fixed_prompt", "history", "participants", "keep_fixed_prompt")
    for name in (*others, "speakers", "style"):
        del fields[name]
    return fields
